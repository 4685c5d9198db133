//! What the server counts and measures, as Prometheus reads it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use jiff::Timestamp;
use musubi::store::kubernetes::connection::Observer;
use musubi::store::kubernetes::table::Freshness;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// From what a decision takes to what an API server waits.
const BUCKETS: [f64; 12] = [0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1.0, 2.5, 10.0];

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The write was allowed.
    Allowed,
    /// The write was refused.
    Denied,
    /// There was nothing to decide about: the request was wrong, too large or too slow.
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabel {
    path: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PathLabel {
    path: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CacheLabel {
    cache: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ApiLabel {
    request: &'static str,
    outcome: &'static str,
}

/// Everything that is counted and measured.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabel, Counter>,
    seconds: Family<PathLabel, Histogram, fn() -> Histogram>,
    connections: Gauge,
    displaced: Counter,
    cached: Family<CacheLabel, Gauge>,
    cache_age: Family<CacheLabel, Gauge<f64, AtomicU64>>,
    api_requests: Family<ApiLabel, Counter>,
    certificate_expiry: Gauge,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            registry: Registry::with_prefix("musubi_webhook"),
            requests: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            connections: Gauge::default(),
            displaced: Counter::default(),
            cached: Family::default(),
            cache_age: Family::default(),
            api_requests: Family::default(),
            certificate_expiry: Gauge::default(),
        };
        metrics.registered()
    }
}

impl Metrics {
    fn registered(mut self) -> Self {
        let r = &mut self.registry;
        r.register("build", "The server's version", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        r.register("requests", "Admission requests that ended", self.requests.clone());
        r.register_with_unit(
            "decision",
            "From a request's whole body to its answer",
            Unit::Seconds,
            self.seconds.clone(),
        );
        r.register("connections", "Connections that are open", self.connections.clone());
        r.register("displaced_connections", "Connections closed to make room for others", self.displaced.clone());
        r.register("cached_objects", "Objects of the API in memory", self.cached.clone());
        r.register("cache_age_seconds", "Since the last event or bookmark of a watch", self.cache_age.clone());
        r.register("api_requests", "Requests to the API server that ended", self.api_requests.clone());
        let help = "When the certificate that is shown expires, in seconds since 1970";
        r.register("certificate_expiry_timestamp_seconds", help, self.certificate_expiry.clone());
        self
    }

    /// An admission request has ended. `path` is `validate` or `mutate`.
    pub fn request(&self, path: &'static str, outcome: Outcome) {
        let outcome = match outcome {
            Outcome::Allowed => "allowed",
            Outcome::Denied => "denied",
            Outcome::Failed => "failed",
        };
        self.requests.get_or_create(&RequestLabel { path, outcome }).inc();
    }

    /// How long a decision took.
    pub fn decided(&self, path: &'static str, took: Duration) {
        self.seconds.get_or_create(&PathLabel { path }).observe(took.as_secs_f64());
    }

    /// How many connections are open.
    pub fn connections(&self, open: usize) {
        self.connections.set(i64::try_from(open).unwrap_or(i64::MAX));
    }

    /// A connection was closed to make room for another.
    pub fn displaced(&self) {
        self.displaced.inc();
    }

    /// How many objects a cache holds, and since when the API server has said nothing about them.
    pub fn cached(&self, cache: &'static str, freshness: Freshness) {
        let label = CacheLabel { cache };
        self.cached.get_or_create(&label).set(i64::try_from(freshness.objects).unwrap_or(i64::MAX));
        if let Some(age) = freshness.age {
            self.cache_age.get_or_create(&label).set(age.as_secs_f64());
        }
    }

    /// Counts the requests of a connection to the API server.
    #[must_use]
    pub fn observer(&self) -> Observer {
        let requests = self.api_requests.clone();
        Arc::new(move |request, _, status| {
            requests.get_or_create(&ApiLabel { request, outcome: class(status) }).inc();
        })
    }

    /// When the certificate expires that is shown.
    pub fn certificate_expires(&self, at: Option<Timestamp>) {
        self.certificate_expiry.set(at.map_or(0, Timestamp::as_second));
    }

    /// Everything as OpenMetrics text.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to memory does not fail.
        let _ = text::encode(&mut text, &self.registry);
        text
    }
}

/// What is counted of an HTTP status; 0 is no answer.
fn class(status: u16) -> &'static str {
    match status {
        0 => "none",
        1..=399 => "2xx",
        429 => "429",
        400..=499 => "4xx",
        _ => "5xx",
    }
}
