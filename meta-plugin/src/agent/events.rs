//! Sending Events when there is time: a queue of fixed length, and so many a second. No operation waits for one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::metrics::Metrics;
use crate::cancel::Cancel;
use crate::store::kubernetes::connection::Patience;
use crate::store::kubernetes::{Connection, send_event};
use crate::store::{Event, Pod};

/// Events that may wait.
const QUEUE: usize = 1000;
/// How long one may be tried.
const PATIENCE: Duration = Duration::from_secs(10);

/// Starts sending, and gives the function that takes Events; with none a second it takes them and nothing comes of it.
pub(super) fn sender(
    connection: Arc<Connection>,
    per_second: u32,
    metrics: Arc<Metrics>,
) -> impl Fn(Pod, Vec<Event>) + Send + Sync + 'static {
    let (queue, waiting) = mpsc::channel(QUEUE);
    tokio::spawn(send(connection, waiting, per_second, Arc::clone(&metrics)));
    move |pod, events| {
        if per_second == 0 {
            return;
        }
        let pod = Arc::new(pod);
        for event in events {
            if queue.try_send((Arc::clone(&pod), event)).is_err() {
                metrics.event_dropped();
            }
        }
    }
}

async fn send(
    connection: Arc<Connection>,
    mut waiting: mpsc::Receiver<(Arc<Pod>, Event)>,
    per_second: u32,
    metrics: Arc<Metrics>,
) {
    let pause = Duration::from_secs(1) / per_second.max(1);
    while let Some((pod, event)) = waiting.recv().await {
        // Before it, so that the operation it tells of is answered first.
        tokio::time::sleep(pause).await;
        let patience = Patience { deadline: Instant::now() + PATIENCE, once: true, cancel: Cancel::default() };
        match send_event(&connection, &patience, &pod, &event).await {
            Ok(()) => metrics.event_sent(),
            Err(failure) => {
                tracing::debug!("event {} of pod {}: {failure}", event.reason, pod.key());
                metrics.event_dropped();
            }
        }
    }
}
