//! What the agent counts and measures, as Prometheus reads it. Counting costs a look into a small table and an atomic
//! addition; who serves the text is the server's business.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::hash::Hash;
use std::sync::atomic::AtomicU64;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use musubi_delegates::cni::{Command, code};
use musubi_delegates::registry::BUNDLED;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry, Unit};

/// What kind of text [`Metrics::encode`] gives, for `Content-Type`.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Plugin types that are not bundled and still get a line of their own. Who may write definitions can invent types without
/// end; from here on they are counted together.
const FOREIGN_KINDS: usize = 32;

/// From half a millisecond, in which a native delegate is done, to the minute after which nothing is waited for.
const OPERATION_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 20.0, 60.0];
/// From an answer out of the API server's memory to its own time limit.
const REQUEST_BUCKETS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0];

/// What the agent keeps in memory of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// This node's pods.
    Pods,
    /// NetworkAttachmentDefinitions.
    Definitions,
    /// AttachmentPolicies.
    Policies,
}

impl Cache {
    fn label(self) -> CacheLabel {
        CacheLabel { cache: ["pods", "definitions", "policies"][self as usize] }
    }
}

/// How an API request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// With this HTTP status.
    Status(u16),
    /// Without any: no connection, or no answer in time.
    None,
}

/// How many records there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RecordCounts {
    /// Their ADD has not ended.
    pub adding: u64,
    /// Of pods that run.
    pub attached: u64,
    /// Their DEL has not ended.
    pub deleting: u64,
    /// Their DEL could not release everything.
    pub orphaned: u64,
    /// They cannot be read.
    pub damaged: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabel {
    verb: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NetworkLabel {
    verb: &'static str,
    kind: Cow<'static, str>,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabel {
    request: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CacheLabel {
    cache: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

type Timed<L> = Family<L, Histogram, fn() -> Histogram>;

/// Everything that is counted and measured.
pub struct Metrics {
    registry: Registry,
    operations: Family<OperationLabel, Counter>,
    operation_seconds: Timed<OperationLabel>,
    networks: Family<NetworkLabel, Counter>,
    network_seconds: Timed<NetworkLabel>,
    queued: Gauge,
    running: Gauge,
    cached: Family<CacheLabel, Gauge>,
    cache_age: Family<CacheLabel, Gauge<f64, AtomicU64>>,
    records: Family<StateLabel, Gauge>,
    leaks: Family<KindLabel, Counter>,
    requests: Family<RequestLabel, Counter>,
    request_seconds: Timed<RequestLabel>,
    events: Family<OutcomeLabel, Counter>,
    foreign_kinds: RwLock<BTreeSet<String>>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Metrics that all begin at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("musubi");
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The agent's version", build);
        let r = &mut registry;
        Self {
            operations: add(r, "operations", "Operations that ended"),
            operation_seconds: add_timed(r, "operation_duration", "From an operation's arrival to its answer", || {
                Histogram::new(OPERATION_BUCKETS)
            }),
            networks: add(r, "network_operations", "Plugin calls that ended, native or external"),
            network_seconds: add_timed(
                r,
                "network_operation_duration",
                "How long one plugin of one network took",
                || Histogram::new(OPERATION_BUCKETS),
            ),
            queued: add(r, "queued_operations", "Operations that wait for a worker"),
            running: add(r, "running_operations", "Operations that a worker carries out"),
            cached: add(r, "cached_objects", "Objects of the API in memory"),
            cache_age: add(r, "cache_age_seconds", "Since the last event or bookmark of a watch"),
            records: add(r, "records", "Attachments in the records, by state"),
            leaks: add(r, "leaks_found", "Resources found that no running pod owns"),
            requests: add(r, "api_requests", "Requests to the API server that ended"),
            request_seconds: add_timed(r, "api_request_duration", "From an API request to its answer", || {
                Histogram::new(REQUEST_BUCKETS)
            }),
            events: add(r, "events", "Events, sent to the API server or dropped"),
            foreign_kinds: RwLock::default(),
            registry,
        }
    }

    /// An operation has ended: in success, or with a CNI error code.
    pub fn operation(&self, verb: Command, error: Option<u32>, took: Duration) {
        let label = OperationLabel { verb: verb.as_str(), outcome: outcome(error) };
        self.operations.get_or_create(&label).inc();
        self.operation_seconds.get_or_create(&label).observe(took.as_secs_f64());
    }

    /// One plugin of one network has ended: in success, or with a CNI error code.
    pub fn network(&self, verb: Command, plugin_type: &str, error: Option<u32>, took: Duration) {
        let label = NetworkLabel { verb: verb.as_str(), kind: self.kind(plugin_type), outcome: outcome(error) };
        self.networks.get_or_create(&label).inc();
        self.network_seconds.get_or_create(&label).observe(took.as_secs_f64());
    }

    /// How many operations wait for a worker, and how many are carried out.
    pub fn load(&self, waiting: usize, running: usize) {
        self.queued.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        self.running.set(i64::try_from(running).unwrap_or(i64::MAX));
    }

    /// How many objects a cache holds, and since when the API server has said nothing about them.
    pub fn cached(&self, cache: Cache, objects: usize, age: Option<Duration>) {
        self.cached.get_or_create(&cache.label()).set(i64::try_from(objects).unwrap_or(i64::MAX));
        if let Some(age) = age {
            self.cache_age.get_or_create(&cache.label()).set(age.as_secs_f64());
        }
    }

    /// How many records there are.
    pub fn records(&self, counts: RecordCounts) {
        let RecordCounts { adding, attached, deleting, orphaned, damaged } = counts;
        for (state, count) in [
            ("adding", adding),
            ("attached", attached),
            ("deleting", deleting),
            ("orphaned", orphaned),
            ("damaged", damaged),
        ] {
            self.records.get_or_create(&StateLabel { state }).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// Something of ours was found that no running pod owns: a `link`, a `reservation`, a `rule`, a `record`, …
    pub fn leak(&self, kind: &'static str) {
        self.leaks.get_or_create(&KindLabel { kind }).inc();
    }

    /// A request to the API server has ended; `request` is its name here: `get pod`, `patch status`, …
    pub fn api_request(&self, request: &'static str, answer: Answer, took: Duration) {
        let label = RequestLabel { request, outcome: class(answer) };
        self.requests.get_or_create(&label).inc();
        self.request_seconds.get_or_create(&label).observe(took.as_secs_f64());
    }

    /// An Event was taken by the API server.
    pub fn event_sent(&self) {
        self.events.get_or_create(&OutcomeLabel { outcome: "sent" }).inc();
    }

    /// An Event was given up: there are too many, or the API server does not take it.
    pub fn event_dropped(&self) {
        self.events.get_or_create(&OutcomeLabel { outcome: "dropped" }).inc();
    }

    /// Everything as OpenMetrics text.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to memory does not fail.
        let _ = text::encode(&mut text, &self.registry);
        text
    }

    fn kind(&self, plugin_type: &str) -> Cow<'static, str> {
        if let Some(bundled) = BUNDLED.iter().find(|bundled| **bundled == plugin_type) {
            return Cow::Borrowed(bundled);
        }
        let own = || Cow::Owned(plugin_type.to_owned());
        if self.foreign_kinds.read().unwrap_or_else(PoisonError::into_inner).contains(plugin_type) {
            return own();
        }
        let mut known = self.foreign_kinds.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= FOREIGN_KINDS {
            return Cow::Borrowed("other");
        }
        known.insert(plugin_type.to_owned());
        own()
    }
}

fn add<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

fn add_timed<L>(registry: &mut Registry, name: &str, help: &str, histogram: fn() -> Histogram) -> Timed<L>
where
    L: Clone + Eq + Hash,
    Timed<L>: Metric,
{
    let metric = Timed::new_with_constructor(histogram);
    registry.register_with_unit(name, help, Unit::Seconds, metric.clone());
    metric
}

fn outcome(error: Option<u32>) -> &'static str {
    match error {
        None => "success",
        Some(code::INCOMPATIBLE_VERSION) => "incompatible_version",
        Some(code::UNSUPPORTED_FIELD) => "unsupported_field",
        Some(code::UNKNOWN_CONTAINER) => "unknown_container",
        Some(code::ENVIRONMENT) => "environment",
        Some(code::IO) => "io",
        Some(code::DECODE) => "decode",
        Some(code::CONFIG) => "configuration",
        Some(code::NAMESPACE) => "namespace",
        Some(code::TRY_AGAIN) => "try_again",
        Some(code::NOT_AVAILABLE) => "not_available",
        Some(code::LIMITED) => "limited",
        Some(code::DELEGATE) => "delegate",
        Some(code::UNDO_INCOMPLETE) => "undo_incomplete",
        Some(_) => "other",
    }
}

/// Being told to wait and being told of a fault are answered differently, and so they are counted.
fn class(answer: Answer) -> &'static str {
    match answer {
        Answer::None => "none",
        Answer::Status(429) => "429",
        Answer::Status(..200) => "1xx",
        Answer::Status(..300) => "2xx",
        Answer::Status(..400) => "3xx",
        Answer::Status(..500) => "4xx",
        Answer::Status(_) => "5xx",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(metrics: &Metrics) -> Vec<String> {
        metrics.encode().lines().map(str::to_owned).collect()
    }

    fn assert_line(metrics: &Metrics, line: &str) {
        let lines = lines(metrics);
        assert!(lines.iter().any(|l| l == line), "no {line} in\n{}", lines.join("\n"));
    }

    #[test]
    fn what_happens_is_counted_by_its_kind() {
        let metrics = Metrics::new();
        let ms = Duration::from_millis;
        metrics.operation(Command::Add, None, ms(3));
        metrics.operation(Command::Add, None, ms(30));
        metrics.operation(Command::Add, Some(11), ms(90_000));
        metrics.network(Command::Add, "bridge", None, ms(2));
        metrics.network(Command::Del, "calico", Some(100), ms(2));
        metrics.api_request("get pod", Answer::Status(200), ms(4));
        metrics.api_request("get pod", Answer::Status(404), ms(4));
        metrics.api_request("get pod", Answer::Status(429), ms(4));
        metrics.api_request("patch status", Answer::None, ms(4));
        metrics.leak("link");
        metrics.event_sent();
        metrics.event_dropped();
        metrics.event_dropped();
        for line in [
            "musubi_operations_total{verb=\"ADD\",outcome=\"success\"} 2",
            "musubi_operations_total{verb=\"ADD\",outcome=\"try_again\"} 1",
            "musubi_operation_duration_seconds_count{verb=\"ADD\",outcome=\"success\"} 2",
            "musubi_operation_duration_seconds_bucket{le=\"0.005\",verb=\"ADD\",outcome=\"success\"} 1",
            "musubi_operation_duration_seconds_bucket{le=\"0.05\",verb=\"ADD\",outcome=\"success\"} 2",
            "musubi_operation_duration_seconds_sum{verb=\"ADD\",outcome=\"try_again\"} 90.0",
            "musubi_network_operations_total{verb=\"ADD\",kind=\"bridge\",outcome=\"success\"} 1",
            "musubi_network_operations_total{verb=\"DEL\",kind=\"calico\",outcome=\"delegate\"} 1",
            "musubi_network_operation_duration_seconds_count{verb=\"DEL\",kind=\"calico\",outcome=\"delegate\"} 1",
            "musubi_api_requests_total{request=\"get pod\",outcome=\"2xx\"} 1",
            "musubi_api_requests_total{request=\"get pod\",outcome=\"4xx\"} 1",
            "musubi_api_requests_total{request=\"get pod\",outcome=\"429\"} 1",
            "musubi_api_requests_total{request=\"patch status\",outcome=\"none\"} 1",
            "musubi_api_request_duration_seconds_count{request=\"patch status\",outcome=\"none\"} 1",
            "musubi_leaks_found_total{kind=\"link\"} 1",
            "musubi_events_total{outcome=\"sent\"} 1",
            "musubi_events_total{outcome=\"dropped\"} 2",
        ] {
            assert_line(&metrics, line);
        }
    }

    #[test]
    fn what_is_there_now_is_shown_as_it_is_now() {
        let metrics = Metrics::new();
        metrics.load(3, 2);
        metrics.load(1, 1);
        metrics.cached(Cache::Pods, 110, Some(Duration::from_millis(1500)));
        metrics.cached(Cache::Definitions, 1000, None);
        metrics.records(RecordCounts { attached: 7, orphaned: 1, ..RecordCounts::default() });
        for line in [
            "musubi_queued_operations 1",
            "musubi_running_operations 1",
            "musubi_cached_objects{cache=\"pods\"} 110",
            "musubi_cached_objects{cache=\"definitions\"} 1000",
            "musubi_records{state=\"attached\"} 7",
            "musubi_records{state=\"adding\"} 0",
            "musubi_records{state=\"orphaned\"} 1",
        ] {
            assert_line(&metrics, line);
        }
        assert_line(&metrics, "musubi_cache_age_seconds{cache=\"pods\"} 1.5");
        let ages = lines(&metrics).iter().filter(|line| line.starts_with("musubi_cache_age_seconds{")).count();
        assert_eq!(ages, 1, "of the definitions nothing was heard yet");
    }

    #[test]
    fn the_text_is_whole_and_describes_itself() {
        let metrics = Metrics::new();
        metrics.operation(Command::Check, None, Duration::ZERO);
        metrics.leak("rule");
        assert_line(&metrics, &format!("musubi_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")));
        assert_line(&metrics, "# TYPE musubi_operation_duration_seconds histogram");
        assert_line(&metrics, "# UNIT musubi_operation_duration_seconds seconds");
        assert_line(&metrics, "# HELP musubi_leaks_found Resources found that no running pod owns.");
        assert_eq!(lines(&metrics).last().map(String::as_str), Some("# EOF"));
    }

    #[test]
    fn invented_plugin_types_do_not_fill_the_memory() {
        let metrics = Metrics::new();
        for n in 0..1000 {
            metrics.network(Command::Add, &format!("invented-{n}"), Some(100), Duration::ZERO);
        }
        metrics.network(Command::Add, "invented-0", Some(100), Duration::ZERO);
        metrics.network(Command::Add, "macvlan", None, Duration::ZERO);
        let kinds = lines(&metrics).iter().filter(|line| line.starts_with("musubi_network_operations_total")).count();
        assert_eq!(kinds, FOREIGN_KINDS + 2);
        assert_line(&metrics, "musubi_network_operations_total{verb=\"ADD\",kind=\"other\",outcome=\"delegate\"} 968");
        assert_line(
            &metrics,
            "musubi_network_operations_total{verb=\"ADD\",kind=\"invented-0\",outcome=\"delegate\"} 2",
        );
    }
}
