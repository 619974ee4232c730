//! The issuer's series: labels from closed sets, no names of pods or nodes.

use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

/// From two answers that the API server has ready to the longest wait.
const BUCKETS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 4.5];

/// All of them, in a registry of their own.
pub struct Metrics {
    registry: Registry,
    tokens: IntCounterVec,
    duration: Histogram,
    reload_failures: IntCounterVec,
    /// Keys in the JWKS.
    pub published_keys: IntGauge,
    /// Log and audit lines that nobody read in time.
    pub dropped_lines: IntCounter,
}

impl Metrics {
    /// All series, at zero.
    pub fn new() -> Self {
        const CONSTANT: &str = "name and labels are constants";
        let tokens = Opts::new("rolecall_issuer_answers_total", "Answers by their code; ok is a token.");
        let tokens = IntCounterVec::new(tokens, &["code"]).expect(CONSTANT);
        tokens.with_label_values(&["ok"]);
        let duration = HistogramOpts::new(
            "rolecall_issuer_answer_duration_seconds",
            "From the end of a request's head to its answer.",
        );
        let duration = Histogram::with_opts(duration.buckets(BUCKETS.to_vec())).expect(CONSTANT);
        let failures = Opts::new(
            "rolecall_issuer_reload_failures_total",
            "Mounted files that changed and could not be used; the old ones are kept.",
        );
        let reload_failures = IntCounterVec::new(failures, &["what"]).expect(CONSTANT);
        for what in ["keys", "tls"] {
            reload_failures.with_label_values(&[what]);
        }
        let published_keys =
            IntGauge::new("rolecall_issuer_published_keys", "Keys in the JWKS.").expect(CONSTANT);
        let dropped_lines =
            IntCounter::new("rolecall_log_lines_dropped_total", "Lines that nobody read in time.")
                .expect(CONSTANT);
        let version = Opts::new("rolecall_build_info", "1, labelled with the version.");
        let version = IntGaugeVec::new(version, &["version"]).expect(CONSTANT);
        version.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let registry = Registry::new();
        let collectors: [Box<dyn prometheus::core::Collector>; 6] = [
            Box::new(tokens.clone()),
            Box::new(duration.clone()),
            Box::new(reload_failures.clone()),
            Box::new(published_keys.clone()),
            Box::new(dropped_lines.clone()),
            Box::new(version),
        ];
        for collector in collectors {
            registry.register(collector).expect("every series is registered once");
        }
        Self { registry, tokens, duration, reload_failures, published_keys, dropped_lines }
    }

    /// One answer to a request that was no document's.
    pub fn answered(&self, code: &'static str, took: Duration) {
        self.tokens.with_label_values(&[code]).inc();
        self.duration.observe(took.as_secs_f64());
    }

    /// `keys` or `tls` changed to something that cannot be used.
    pub fn reload_failed(&self, what: &'static str) {
        self.reload_failures.with_label_values(&[what]).inc();
    }

    /// The text exposition format.
    pub fn render(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
