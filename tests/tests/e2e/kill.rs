//! A process is killed at every change it makes: the agent alone, the agent and its client, the plugin that works without an
//! agent. Whoever comes next finishes or undoes; no answer is a wrong success, and nothing is left.

mod seldom;
mod stage;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use musubi_tests::agent::Agent;
use musubi_tests::mutations::{Log, Mutation};
use musubi_tests::node::{Output, Sandbox};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use self::stage::{Device, Stage};
use crate::scene::crowd;

/// The container that is worked on when a process dies.
const VICTIM: &str = "victim";
/// Rounds at a time.
const LANES: usize = 4;
/// Pods that come and go meanwhile, in each of them.
const LOAD: usize = 1;
/// How long a change takes at most, until the process waits at the next one.
const ONE_CHANGE: Duration = Duration::from_millis(4);

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dies {
    /// The agent: its client is left to do the work.
    Agent,
    /// The agent and its client: nobody is left to do it.
    Both,
    /// The plugin, which works without an agent.
    Plugin,
}

/// One death.
#[derive(Debug, Clone)]
struct Round {
    command: &'static str,
    dies: Dies,
    /// At which kind of change of the operation, and how many of it come before; `None` to let it live.
    at: Option<(String, usize)>,
    /// Once that change is made, not before it.
    late: bool,
    /// Whether an agent that is started again finishes, or the plugin alone.
    by_agent: bool,
    /// Whether an ADD that nobody finished is tried again before DEL.
    again: bool,
}

/// What was seen: changes of the operation that was to be killed, and where it was.
#[derive(Debug, Default)]
struct Seen {
    changes: Vec<String>,
    /// The last change that it announced, if it was killed.
    died_at: Option<String>,
}

/// Every kind of change there is, so that one which is not announced any more is missed.
const POINTS: [(&str, &[&str]); 2] = [
    (
        "ADD",
        &[
            "address.add",
            "device-info.clear",
            "device-info.write",
            "fdb.add",
            "link.change",
            "link.create",
            "nftables.transaction",
            "plugin.end",
            "plugin.start",
            "record.rename",
            "record.tidy",
            "record.write",
            "reservation.claim",
            "reservation.index",
            "reservation.last",
            "reservation.seal",
            "reservation.write",
            "route.add",
            "route.remove",
            "status.rename",
            "status.write",
            "sysctl.write",
        ],
    ),
    (
        "DEL",
        &[
            "device-info.remove",
            "link.delete",
            "lock.remove",
            "nftables.transaction",
            "plugin.end",
            "plugin.start",
            "record.remove",
            "record.rename",
            "record.tidy",
            "record.write",
            "reservation.index",
            "reservation.release",
            "reservation.seal",
            "status.remove",
        ],
    ),
];

#[test]
fn the_agent_is_killed_at_every_change() {
    let device = Device::new();
    let stage = || Stage::in_folder(&device);
    let survey = run(&stage, &rounds(&stage, &[Dies::Agent, Dies::Both]));
    assert!(survey.kills >= 200, "only {} kills", survey.kills);
    survey.assert_every_point_was_hit();
}

#[test]
fn a_plugin_alone_is_killed_at_every_change() {
    let device = Device::new();
    let stage = || Stage::in_folder(&device);
    let survey = run(&stage, &rounds(&stage, &[Dies::Plugin]));
    survey.assert_every_point_was_hit();
}

/// What differs with an API server is the status; of the other changes a few will do.
#[test]
fn the_agent_of_a_cluster_is_killed_while_it_works() {
    let mut rounds = rounds(&Stage::in_cluster, &[Dies::Agent, Dies::Both]);
    let mut number = 0;
    rounds.retain(|round| {
        number += 1;
        number % 8 == 0 || round.at.as_ref().is_some_and(|(point, _)| point == "status.write")
    });
    let survey = run(&Stage::in_cluster, &rounds);
    assert!(survey.hit.contains(&("ADD", "status.write".to_owned())), "{survey:?}");
    assert!(survey.kills >= 30, "only {} kills", survey.kills);
}

/// The last network's plugin fails, so ADD takes everything back, and dies over that.
#[test]
fn an_add_that_undoes_itself_is_killed_at_every_change() {
    let device = Device::new();
    let stage = || Stage::whose_add_fails(&device);
    let ways = [Dies::Agent, Dies::Both, Dies::Plugin];
    let changes = changes(&stage(), "ADD", ways[0]);
    let plugins_end = changes.iter().enumerate().filter(|(_, point)| *point == "plugin.end");
    let (failure, _) = plugins_end.take(2).last().unwrap();
    let survey = run(&stage, &deaths("ADD", &changes, failure + 1, &ways));
    for point in ["plugin.start", "link.delete", "nftables.transaction", "reservation.release", "record.remove"] {
        assert!(survey.hit.contains(&("ADD", point.to_owned())), "nobody was killed at {point}: {changes:?}");
    }
}

/// What all deaths together have shown.
#[derive(Debug, Default)]
struct Survey {
    kills: usize,
    seen: BTreeSet<(&'static str, String)>,
    hit: BTreeSet<(&'static str, String)>,
}

impl Survey {
    fn assert_every_point_was_hit(&self) {
        let missed: Vec<_> = self.seen.difference(&self.hit).collect();
        assert!(missed.is_empty(), "nobody was killed at {missed:?}");
        for (command, points) in POINTS {
            let hit = self.hit.iter().filter(|(of, _)| *of == command).map(|(_, point)| point.as_str());
            assert_eq!(hit.collect::<Vec<_>>(), points, "{command}");
        }
    }
}

/// The changes that an operation makes when nobody dies.
fn changes(stage: &Stage, command: &'static str, dies: Dies) -> Vec<String> {
    let alive = Round { command, dies, at: None, late: false, by_agent: false, again: false };
    play(stage, &alive).changes
}

/// A death at each change of ADD and of DEL.
fn rounds(stage: &dyn Fn() -> Stage, ways: &[Dies]) -> Vec<Round> {
    let of = |command| deaths(command, &changes(&stage(), command, ways[0]), 0, ways);
    [of("ADD"), of("DEL")].concat()
}

/// A death at each of these changes but for the first so many, the ways to die in turn; the first change of each kind is died
/// at in every way, before and after it.
fn deaths(command: &'static str, changes: &[String], from: usize, ways: &[Dies]) -> Vec<Round> {
    let mut rounds = Vec::new();
    for (number, point) in changes.iter().enumerate().skip(from) {
        let is_first = !changes[from..number].contains(point);
        let deaths = match is_first {
            true => ways.iter().flat_map(|dies| [(*dies, false), (*dies, true)]).collect(),
            false => vec![(ways[number % ways.len()], number / 8 % 2 == 1)],
        };
        let before = changes[..number].iter().filter(|other| *other == point).count();
        for (dies, late) in deaths {
            let (by_agent, again) = (rounds.len() / 2 % 2 == 1, rounds.len() / 4 % 2 == 1);
            rounds.push(Round { command, dies, at: Some((point.clone(), before)), late, by_agent, again });
        }
    }
    rounds
}

fn run(stage: &(dyn Fn() -> Stage + Sync), rounds: &[Round]) -> Survey {
    let survey = Mutex::new(Survey::default());
    crowd(rounds.len(), LANES, |number| {
        let round = &rounds[number];
        let seen = play(&stage(), round);
        let mut survey = survey.lock().unwrap();
        survey.kills += usize::from(seen.died_at.is_some());
        survey.seen.extend(seen.changes.into_iter().map(|name| (round.command, name)));
        survey.hit.extend(seen.died_at.map(|name| (round.command, name)));
    });
    survey.into_inner().unwrap()
}

/// Plays a round on a stage of its own and proves that all ends well.
fn play(stage: &Stage, round: &Round) -> Seen {
    let case = format!("{round:?}");
    let victim = stage.sandbox(VICTIM, "web");
    let others: Vec<Sandbox> = (0..LOAD).map(|n| stage.sandbox(&format!("load{n}"), "load")).collect();
    let stop = AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        let (log, end) = Log::new();
        let mut end = Some(end);
        let agent = (round.dies != Dies::Plugin).then(|| {
            let agent = Agent::spawn_logging_to(&stage.scene.node, &stage.agent, end.take().unwrap());
            (agent.pid(), agent)
        });
        let (clients, client) = mpsc::channel();
        let pid = agent.as_ref().map(|(pid, _)| *pid);
        let watcher = scope.spawn(move || watch(&log, round, pid, &client));
        if let Some((_, agent)) = &agent {
            agent.wait_until_it_answers();
        }
        for other in &others {
            scope.spawn(|| stage.load(other, &stop));
        }
        if round.command == "DEL" {
            let _ = stage.scene.add(&victim).result();
        }
        let child = match end {
            Some(end) => stage.scene.start_logging_to(round.command, &victim, &stage.alone(), end),
            None => stage.scene.start(round.command, &victim, &stage.scene.config),
        };
        clients.send(child.id()).unwrap();
        let output = child.wait_with_output().unwrap();
        drop(agent);
        let seen = watcher.join().unwrap();
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        let answered = seen.died_at.is_none() || round.dies == Dies::Agent;
        let succeeds = round.command == "DEL" || !stage.add_fails;
        assert!(!answered || output.status.success() == succeeds, "{case}: {answer}");
        finish(stage, &victim, round, answered, &case);
        seen
    });
    stage.scene.nothing_is_left(&others.iter().chain([&victim]).collect::<Vec<_>>(), &[], &case);
    seen
}

/// What comes after a death: whoever answered has told the truth, and DEL leaves nothing.
fn finish(stage: &Stage, victim: &Sandbox, round: &Round, answered: bool, case: &str) {
    let scene = &stage.scene;
    if answered && (round.command == "DEL" || stage.add_fails) {
        stage.is_gone(victim, case);
    }
    let _agent = round.by_agent.then(|| Agent::start(&scene.node, &stage.agent));
    if round.command == "ADD" && (answered || round.again) {
        let again = (!answered).then(|| scene.add(victim));
        if stage.add_fails {
            assert!(again.is_none_or(|again| again.error().0 == 100), "{case}: ADD fails each time");
            stage.is_gone(victim, case);
        } else {
            let is_there = |again: Output| again.ok || again.error().1.contains("attached already");
            assert!(again.is_none_or(is_there), "{case}");
            stage.is_attached(victim, case);
        }
    }
    let deleted = scene.del(victim);
    assert!(deleted.ok, "{case}: {}", deleted.stdout);
    stage.is_gone(victim, case);
}

/// Reads the log to its end. At the change that the round names it kills, and goes on when they are dead.
fn watch(log: &Log, round: &Round, agent: Option<u32>, client: &mpsc::Receiver<u32>) -> Seen {
    let mut seen = Seen::default();
    while let Some(line) = log.look() {
        let change = Mutation::of(&line).filter(|m| m.command == round.command && m.container == VICTIM);
        if let Some(change) = change {
            let before = seen.changes.iter().filter(|point| **point == change.point).count();
            seen.changes.push(change.point.clone());
            if round.at == Some((change.point.clone(), before)) {
                if round.late {
                    std::thread::sleep(ONE_CHANGE);
                }
                let client = (round.dies != Dies::Agent).then(|| client.recv().unwrap());
                client.into_iter().chain(agent).for_each(end);
                seen.died_at = Some(change.point);
            }
        }
        log.take();
    }
    seen
}

/// Kills a process of ours and waits until it is dead, which whoever started it still learns, or has learnt.
fn end(pid: u32) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap());
    kill(pid, Signal::SIGKILL).unwrap();
    let dead = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
    assert!(matches!(dead, Ok(_) | Err(Errno::ECHILD)), "{dead:?}");
}

/// Tells those who come and go to stop, however the round ends.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
