//! Watches: the stream of changes of a selection, its bookmarks, and how it ends.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::list::Form;
use super::resources::Resource;
use super::select::Selection;
use super::shared::Shared;
use super::status::Status;
use super::store::{Change, Object};

/// How long before its end a watch sends a last bookmark.
const BEFORE_THE_END: Duration = Duration::from_secs(2);

/// How long a watch lasts that names no time.
const LONGEST: Duration = Duration::from_secs(30 * 60);

/// A watch that has been granted.
#[derive(Debug)]
pub struct Watch {
    /// What is watched.
    pub index: usize,
    /// Its resource.
    pub resource: Arc<Resource>,
    /// Of which the watcher sees this.
    pub selection: Selection,
    /// In this form.
    pub form: Form,
    /// From here on.
    pub from: u64,
    /// What it sees first.
    pub initial: Vec<Arc<Object>>,
    /// Whether a bookmark says when that is over.
    pub marks_initial: bool,
    /// Whether bookmarks are wanted.
    pub bookmarks: bool,
    /// How long it lasts.
    pub timeout: Option<Duration>,
}

/// The body of a watch that is refused inside a 200.
pub fn refused(status: &Status) -> Bytes {
    line("ERROR", status.body().to_string().as_bytes())
}

impl Watch {
    /// Sends the stream until it ends or nobody listens any more.
    pub async fn run(mut self, shared: Arc<Shared>, to: mpsc::Sender<Bytes>) {
        // What does not fit the channel waits here, so that the store is never locked for a slow reader.
        let _ = self.send(&shared, &to).await;
    }

    /// `None` when nobody listens.
    async fn send(&mut self, shared: &Shared, to: &mpsc::Sender<Bytes>) -> Option<()> {
        let mut signals = shared.signals.subscribe();
        let opened = signals.borrow().closed;
        let end = Instant::now() + self.timeout.unwrap_or(LONGEST);
        for object in std::mem::take(&mut self.initial) {
            to.send(self.event(Change::Added, &object)).await.ok()?;
        }
        if self.marks_initial {
            to.send(self.bookmark(self.from, true)).await.ok()?;
        }
        let mut next_bookmark = self.next_bookmark(shared, end);
        loop {
            let now = *signals.borrow_and_update();
            if now.closed != opened {
                return Some(());
            }
            if !now.paused {
                self.send_changes(shared, to).await?;
            }
            tokio::select! {
                changed = signals.changed() => changed.ok()?,
                () = sleep_until(next_bookmark), if self.bookmarks => {
                    if !now.paused {
                        self.send_changes(shared, to).await?;
                        to.send(self.bookmark(self.from, false)).await.ok()?;
                    }
                    next_bookmark = self.next_bookmark(shared, end);
                }
                () = sleep_until(end) => return Some(()),
                () = to.closed() => return None,
            }
        }
    }

    async fn send_changes(&mut self, shared: &Shared, to: &mpsc::Sender<Bytes>) -> Option<()> {
        let (changes, version, oldest) = {
            let store = shared.store();
            (store.changes(self.index, self.from, &self.selection), store.version(), store.oldest())
        };
        let Some(changes) = changes else {
            to.send(refused(&too_old(self.from, oldest))).await.ok()?;
            return None;
        };
        self.from = self.from.max(version);
        let events: Vec<Bytes> = changes.iter().map(|(change, object)| self.event(*change, object)).collect();
        match events.len() {
            0 => Some(()),
            1 => to.send(events.into_iter().next()?).await.ok(),
            _ => to.send(Bytes::from(events.concat())).await.ok(),
        }
    }

    fn next_bookmark(&self, shared: &Shared, end: Instant) -> Instant {
        let now = Instant::now();
        let regular = now + shared.settings().bookmark_every;
        match end.checked_sub(BEFORE_THE_END) {
            Some(last) if self.timeout.is_some() && last > now => last.min(regular),
            _ => regular,
        }
    }

    fn event(&self, change: Change, object: &Object) -> Bytes {
        let word = match change {
            Change::Added => "ADDED",
            Change::Modified => "MODIFIED",
            Change::Deleted => "DELETED",
        };
        line(word, &self.form.bytes(object))
    }

    fn bookmark(&self, version: u64, ends_initial: bool) -> Bytes {
        let mut object = json!({
            "kind": self.resource.kind, "apiVersion": self.resource.api_version(),
            "metadata": {"resourceVersion": version.to_string()},
        });
        if ends_initial {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        if self.resource.kind == "Pod" {
            object["spec"] = json!({"containers": null});
            object["status"] = json!({});
        }
        line("BOOKMARK", self.form.value(&object).to_string().as_bytes())
    }
}

/// The 410 of a watch that asks for more than is remembered.
pub fn too_old(version: u64, oldest: u64) -> Status {
    Status::expired(format!("too old resource version: {version} ({oldest})"))
}

/// The 500 of a server that does not stream lists.
pub fn no_streaming_list() -> Status {
    Status::internal(
        "a watch stream was requested by the client but the required storage feature RequestWatchProgress is disabled",
    )
}

fn line(word: &str, object: &[u8]) -> Bytes {
    let mut line = Vec::with_capacity(object.len() + word.len() + 26);
    line.extend_from_slice(b"{\"type\":\"");
    line.extend_from_slice(word.as_bytes());
    line.extend_from_slice(b"\",\"object\":");
    line.extend_from_slice(object);
    line.extend_from_slice(b"}\n");
    Bytes::from(line)
}

/// Metadata alone, as `meta.k8s.io/v1` has it.
pub fn metadata_only(value: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": value["metadata"]})
}
