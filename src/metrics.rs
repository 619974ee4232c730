//! Every series: name with unit, labels from closed sets. No pod names, ARNs or addresses.

use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::cache::{Lookup, States};
use crate::role::Operation;

/// Who answers, as `rolecall_requests_total{endpoint}` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/credentials`
    ContainerCredentials,
    /// `/latest/meta-data/…`
    InstanceMetadata,
}

impl Endpoint {
    /// The metric's label, and the audit line's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ContainerCredentials => "container-credentials",
            Self::InstanceMetadata => "imds",
        }
    }
}

const ENDPOINTS: [Endpoint; 2] = [Endpoint::ContainerCredentials, Endpoint::InstanceMetadata];
/// From a cached answer (microseconds) to the longest wait (0.9 s).
const REQUEST_BUCKETS: &[f64] = &[0.000_05, 0.000_1, 0.000_5, 0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 0.9, 1.5];
const STS_BUCKETS: &[f64] = &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 9.0];

/// The registry is passed in the agent's own hands, not global, so tests in one process do not share counts.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    requests_ok: [IntCounter; 2],
    request_duration: [Histogram; 2],
    refusals: IntCounterVec,
    attestations: IntCounterVec,
    attestations_ok: IntCounter,
    lookups: [IntCounter; 3],
    sts_calls: IntCounterVec,
    sts_duration: [Histogram; 2],
    /// Percent of STS's limit that session policies and tags took, as last reported.
    pub sts_packed_policy_percent: IntGauge,
    token_requests: IntCounterVec,
    credentials: IntGaugeVec,
    /// Pods of this node in the index.
    pub pods: IntGauge,
    watch_restarts: IntCounterVec,
    watch_last_event: IntGaugeVec,
    /// Log and audit lines that nobody read in time.
    pub dropped_lines: IntCounter,
}

impl Metrics {
    /// All series, at zero.
    pub fn new() -> Self {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters =
                IntCounterVec::new(Opts::new(name, help), labels).expect("name and labels are constants");
            register(&registry, counters.clone());
            counters
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let gauges =
                IntGaugeVec::new(Opts::new(name, help), labels).expect("name and labels are constants");
            register(&registry, gauges.clone());
            gauges
        };
        let histograms = |name: &str, help: &str, label: &str, buckets: &[f64]| {
            let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            let histograms = HistogramVec::new(opts, &[label]).expect("name and labels are constants");
            register(&registry, histograms.clone());
            histograms
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help).expect("the name is a constant");
            register(&registry, gauge.clone());
            gauge
        };

        let requests =
            counters("rolecall_requests_total", "Answers by their code; ok is 200.", &["endpoint", "code"]);
        let attestations =
            counters("rolecall_attestations_total", "Callers identified, or why not.", &["result"]);
        let lookups = counters("rolecall_cache_lookups_total", "How answers came about.", &["result"]);
        let duration = histograms(
            "rolecall_request_duration_seconds",
            "From the end of the head to the answer.",
            "endpoint",
            REQUEST_BUCKETS,
        );
        let sts = histograms("rolecall_sts_call_duration_seconds", "One STS hop.", "operation", STS_BUCKETS);
        let dropped_lines =
            IntCounter::new("rolecall_log_lines_dropped_total", "Lines that nobody read in time.")
                .expect("the name is a constant");
        register(&registry, dropped_lines.clone());
        let sts_calls =
            counters("rolecall_sts_calls_total", "STS calls by outcome.", &["operation", "result"]);
        let token_requests =
            counters("rolecall_token_requests_total", "TokenRequests by outcome.", &["result"]);
        // A rate over a series that begins with its first event misses that event.
        for operation in Operation::ALL {
            sts_calls.with_label_values(&[operation.as_str(), "ok"]);
        }
        token_requests.with_label_values(&["ok"]);
        gauges("rolecall_build_info", "1, labelled with the version.", &["version"])
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        Self {
            requests_ok: ENDPOINTS.map(|endpoint| requests.with_label_values(&[endpoint.as_str(), "ok"])),
            requests,
            request_duration: ENDPOINTS.map(|endpoint| duration.with_label_values(&[endpoint.as_str()])),
            refusals: counters("rolecall_refusals_total", "Answers that are not 200, by code.", &["code"]),
            attestations_ok: attestations.with_label_values(&["ok"]),
            attestations,
            lookups: [Lookup::Hit, Lookup::Miss, Lookup::Joined]
                .map(|lookup| lookups.with_label_values(&[lookup.as_str()])),
            sts_calls,
            sts_duration: Operation::ALL.map(|operation| sts.with_label_values(&[operation.as_str()])),
            sts_packed_policy_percent: gauge(
                "rolecall_sts_packed_policy_percent",
                "Of STS's limit, as last reported.",
            ),
            token_requests,
            credentials: gauges(
                "rolecall_credentials",
                "Plans by the state of their credentials.",
                &["state"],
            ),
            pods: gauge("rolecall_pods", "Pods of this node in the index."),
            watch_restarts: counters(
                "rolecall_kube_watch_restarts_total",
                "Watches started again.",
                &["resource"],
            ),
            watch_last_event: gauges(
                "rolecall_kube_watch_last_event_timestamp_seconds",
                "When a watch last spoke.",
                &["resource"],
            ),
            dropped_lines,
            registry,
        }
    }

    /// One answer of `endpoint`.
    pub fn answered(&self, endpoint: Endpoint, code: &'static str, took: Duration) {
        if code == "ok" {
            self.requests_ok[endpoint as usize].inc();
        } else {
            self.requests.with_label_values(&[endpoint.as_str(), code]).inc();
        }
        self.request_duration[endpoint as usize].observe(took.as_secs_f64());
    }

    /// One answer that was a refusal.
    pub fn refused(&self, code: &'static str) {
        self.refusals.with_label_values(&[code]).inc();
    }

    /// One question to the cache.
    pub fn looked_up(&self, lookup: Lookup) {
        self.lookups[lookup as usize].inc();
    }

    /// One attempt to identify a caller.
    pub fn attested(&self, result: &'static str) {
        if result == "ok" {
            self.attestations_ok.inc();
        } else {
            self.attestations.with_label_values(&[result]).inc();
        }
    }

    /// One STS call; `result` is "ok" or the error's code.
    pub fn sts_call(&self, operation: Operation, took: Duration, result: &'static str) {
        self.sts_calls.with_label_values(&[operation.as_str(), result]).inc();
        self.sts_duration[operation as usize].observe(took.as_secs_f64());
    }

    /// One TokenRequest; `result` is "ok" or [`crate::cluster::Error::result`].
    pub fn token_request(&self, result: &'static str) {
        self.token_requests.with_label_values(&[result]).inc();
    }

    /// What a watch has to say of itself, at the time of the scrape.
    pub fn watch(&self, resource: &'static str, restarts: u64, last_event: i64) {
        let counter = self.watch_restarts.with_label_values(&[resource]);
        counter.inc_by(restarts.saturating_sub(counter.get()));
        self.watch_last_event.with_label_values(&[resource]).set(last_event);
    }

    /// The text exposition format.
    pub fn render(&self, states: States) -> String {
        for (state, count) in [("fresh", states.fresh), ("stale", states.stale), ("failed", states.failed)] {
            self.credentials.with_label_values(&[state]).set(count);
        }
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn register(registry: &Registry, collector: impl prometheus::core::Collector + 'static) {
    registry.register(Box::new(collector)).expect("every series is registered once");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_is_there_before_the_first_event() {
        let metrics = Metrics::new();
        metrics.watch("pods", 0, 0);
        let text = metrics.render(States::default());
        for series in [
            "rolecall_requests_total{code=\"ok\",endpoint=\"container-credentials\"} 0",
            "rolecall_requests_total{code=\"ok\",endpoint=\"imds\"} 0",
            "rolecall_request_duration_seconds_count{endpoint=\"container-credentials\"} 0",
            "rolecall_attestations_total{result=\"ok\"} 0",
            "rolecall_cache_lookups_total{result=\"hit\"} 0",
            "rolecall_cache_lookups_total{result=\"miss\"} 0",
            "rolecall_cache_lookups_total{result=\"joined\"} 0",
            "rolecall_credentials{state=\"fresh\"} 0",
            "rolecall_sts_calls_total{operation=\"AssumeRoleWithWebIdentity\",result=\"ok\"} 0",
            "rolecall_sts_call_duration_seconds_count{operation=\"AssumeRoleWithWebIdentity\"} 0",
            "rolecall_sts_calls_total{operation=\"AssumeRole\",result=\"ok\"} 0",
            "rolecall_sts_call_duration_seconds_count{operation=\"AssumeRole\"} 0",
            "rolecall_sts_packed_policy_percent 0",
            "rolecall_token_requests_total{result=\"ok\"} 0",
            "rolecall_kube_watch_restarts_total{resource=\"pods\"} 0",
            "rolecall_kube_watch_last_event_timestamp_seconds{resource=\"pods\"} 0",
            "rolecall_pods 0",
            "rolecall_build_info{version=",
        ] {
            assert!(text.lines().any(|line| line.starts_with(series)), "{series} is not in {text}");
        }
    }

    #[test]
    fn a_watchs_restarts_are_counted_once_however_often_they_are_scraped() {
        let metrics = Metrics::new();
        for restarts in [2, 2, 3, 3] {
            metrics.watch("pods", restarts, 0);
        }
        let text = metrics.render(States::default());
        assert!(text.contains("rolecall_kube_watch_restarts_total{resource=\"pods\"} 3"), "{text}");
    }
}
