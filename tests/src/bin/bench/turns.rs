//! Measuring in turns: what else the machine does falls on all sides alike.

use std::collections::VecDeque;
use std::sync::{Barrier, Mutex};
use std::time::Duration;

use musubi_tests::node::Node;

use crate::samples::{Samples, time};
use crate::sides::{Pod, Side};

/// Rounds before counting begins.
const WARM_UP: usize = 5;
/// Rounds that count.
pub const ROUNDS: usize = 31;
/// Between two measurements: what the kernel still does for the one before is over then.
const REST: Duration = Duration::from_millis(25);
/// Pods of a burst.
pub const PODS: u32 = 40;
/// How many are worked on at a time.
pub const AT_A_TIME: usize = 16;
/// How often the burst is repeated: it is long enough by itself.
const BURSTS: usize = 5;

/// The times of one side.
#[derive(Debug, Clone, Default)]
pub struct Times {
    /// Of ADD.
    pub add: Samples,
    /// Of DEL.
    pub del: Samples,
}

/// Makes a side for each thread that works for it.
pub type Make<'a> = &'a (dyn Fn() -> Box<dyn Side> + Sync);

/// Measures several things, the first one first in every other round.
pub fn in_turns(things: &mut [&mut dyn FnMut() -> Duration]) -> Vec<Samples> {
    let mut all = vec![Samples::default(); things.len()];
    for round in 0..WARM_UP + ROUNDS {
        let mut order: Vec<usize> = (0..things.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for thing in order {
            let sample = things[thing]();
            if round >= WARM_UP {
                all[thing].push(sample);
            }
        }
    }
    all
}

/// ADD and DEL of one pod, another side first in each round.
pub fn of_one_pod<const SIDES: usize>(sides: [&dyn Side; SIDES], pod: &Pod) -> [Times; SIDES] {
    let mut all = std::array::from_fn(|_| Times::default());
    for round in 0..WARM_UP + ROUNDS {
        for turn in 0..SIDES {
            let side = (turn + round) % SIDES;
            let (add, ()) = time(|| sides[side].add(pod));
            std::thread::sleep(REST);
            let (del, ()) = time(|| sides[side].del(pod));
            std::thread::sleep(REST);
            if round >= WARM_UP {
                all[side].add.push(add);
                all[side].del.push(del);
            }
        }
    }
    all
}

/// ADD and then DEL of [`PODS`] pods, [`AT_A_TIME`]. The first burst of each side does not count.
pub fn of_bursts<const SIDES: usize>(node: &Node, sides: [Make<'_>; SIDES]) -> [Times; SIDES] {
    let mut all = std::array::from_fn(|_| Times::default());
    let mut pods = crowd();
    for round in 0..=BURSTS {
        for (make, times) in sides.iter().zip(&mut all) {
            let (add, attached) = for_all(node, pods, *make, |side, pod| side.add(pod));
            std::thread::sleep(REST * 4);
            let (del, detached) = for_all(node, attached, *make, |side, pod| side.del(pod));
            std::thread::sleep(REST * 4);
            pods = detached;
            if round > 0 {
                times.add.push(add);
                times.del.push(del);
            }
        }
    }
    all
}

/// What was measured, verb by verb.
pub fn by_verb<const SIDES: usize>(times: &[Times; SIDES]) -> [(&'static str, [&Samples; SIDES]); 2] {
    [("ADD", times.each_ref().map(|of| &of.add)), ("DEL", times.each_ref().map(|of| &of.del))]
}

/// The pods of a burst.
pub fn crowd() -> VecDeque<Pod> {
    (0..PODS).map(Pod::new).collect()
}

/// How many pods a second that is.
pub fn rate(samples: &Samples) -> String {
    format!("{:.0}", f64::from(PODS) * 1000.0 / samples.median())
}

/// Does something to all pods, several at a time. Threads and sockets are made before the clock starts.
pub fn for_all(
    node: &Node,
    pods: VecDeque<Pod>,
    make: Make<'_>,
    act: fn(&dyn Side, &Pod),
) -> (Duration, VecDeque<Pod>) {
    let (waiting, done) = (Mutex::new(pods), Mutex::new(VecDeque::new()));
    let (ready, finished) = (Barrier::new(AT_A_TIME + 1), Barrier::new(AT_A_TIME + 1));
    let work = || {
        node.host.enter(|| {
            let side = make();
            ready.wait();
            while let Some(pod) = { waiting.lock().expect("pods").pop_front() } {
                act(&*side, &pod);
                done.lock().expect("pods").push_back(pod);
            }
            finished.wait();
        });
    };
    let elapsed = std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(work);
        }
        ready.wait();
        time(|| finished.wait()).0
    });
    (elapsed, done.into_inner().expect("pods"))
}
