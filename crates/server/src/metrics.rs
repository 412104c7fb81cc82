//! What the server counts, in OpenMetrics' text: the engine's own counts, and requests over HTTP.

use std::{
    fmt,
    sync::{Arc, OnceLock, atomic::AtomicI64},
};

use dsv3_engine::{Histogram, Snapshot};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet, text},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
    },
    registry::Registry,
};

use crate::app::Served;

/// What all names begin with.
const PREFIX: &str = "dsv3";

type Labels = Vec<(String, String)>;

/// What the server counts.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Labels, Counter>,
    streams: Gauge<i64, AtomicI64>,
    streams_cut: Counter,
}

impl Metrics {
    /// Of a model that may come later.
    pub(crate) fn new(model: Arc<OnceLock<Served>>) -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        let requests = Family::<Labels, Counter>::default();
        let (streams, streams_cut) = (Gauge::default(), Counter::default());
        registry.register("http_requests", "Responses by path and status", requests.clone());
        registry.register("open_streams", "Answers that are being streamed", streams.clone());
        registry.register(
            "cut_streams",
            "Streams that ended early: their clients went away or did not read, or their answers failed",
            streams_cut.clone(),
        );
        registry.register_collector(Box::new(EngineCounts(model)));
        Self { registry, requests, streams, streams_cut }
    }

    /// As text.
    ///
    /// # Errors
    /// None in practice: writing to a string does not fail.
    pub(crate) fn text(&self) -> Result<String, fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }

    /// A response is on its way. `path` is one of the server's own, so that there are not as many as clients make up.
    pub(crate) fn responded(&self, path: &str, status: u16) {
        let labels = vec![("path".to_owned(), path.to_owned()), ("status".to_owned(), status.to_string())];
        self.requests.get_or_create(&labels).inc();
    }

    pub(crate) fn stream_opened(&self) {
        self.streams.inc();
    }

    pub(crate) fn stream_closed(&self, early: bool) {
        self.streams.dec();
        if early {
            self.streams_cut.inc();
        }
    }

    /// Answers that are being streamed.
    pub(crate) fn open_streams(&self) -> i64 {
        self.streams.get()
    }
}

/// Asks the engine when it is asked.
struct EngineCounts(Arc<OnceLock<Served>>);

impl fmt::Debug for EngineCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineCounts").finish_non_exhaustive()
    }
}

impl Collector for EngineCounts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(served) = self.0.get() else { return Ok(()) };
        let counts = served.engine.snapshot();
        for (name, help, value) in gauges(&counts) {
            let gauge = ConstGauge::new(value as i64);
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        for (name, help, value) in counters(&counts) {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        for (name, help, histogram) in histograms(&counts) {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            metric.encode_histogram::<NoLabelSet>(
                histogram.sum(),
                histogram.count(),
                &buckets(histogram),
                None,
            )?;
        }
        Ok(())
    }
}

/// Upper ends and counts; the encoder adds them up.
fn buckets(histogram: &Histogram) -> Vec<(f64, u64)> {
    let ends = histogram.bounds().iter().copied().chain([f64::INFINITY]);
    ends.zip(histogram.counts().iter().copied()).collect()
}

type Numbers<const N: usize> = [(&'static str, &'static str, u64); N];

fn gauges(counts: &Snapshot) -> Numbers<7> {
    let pages = &counts.pages;
    [
        ("waiting_requests", "Requests that wait to begin, or to go on", counts.waiting as u64),
        ("prefilling_sequences", "Sequences whose prompts are being run", counts.prefilling as u64),
        ("decoding_sequences", "Sequences that generate", counts.decoding as u64),
        ("cache_pages", "Pages of the cache", pages.total as u64),
        ("cache_pages_held", "Pages that sequences hold", pages.held as u64),
        ("cache_pages_kept", "Pages that nobody holds and that can be used again", pages.kept as u64),
        ("cache_pages_free", "Pages that hold nothing", pages.free as u64),
    ]
}

fn counters(counts: &Snapshot) -> Numbers<10> {
    [
        ("requests", "Requests that were taken", counts.submitted),
        ("requests_refused", "Requests that found the queue full", counts.refused),
        ("requests_finished", "Requests that ended by themselves", counts.finished),
        ("requests_cancelled", "Requests that their clients ended", counts.cancelled),
        ("requests_failed", "Requests that an error ended", counts.failed),
        ("prompt_tokens", "Tokens of prompts", counts.prompt_tokens),
        ("cached_prompt_tokens", "Tokens of prompts that were in the cache", counts.cached_tokens),
        ("generated_tokens", "Tokens that were generated", counts.generated_tokens),
        ("preemptions", "Sequences that lost their pages to others", counts.preemptions),
        ("cache_pages_evicted", "Kept pages that were given to others", counts.pages.evicted),
    ]
}

fn histograms(counts: &Snapshot) -> [(&'static str, &'static str, &Histogram); 5] {
    [
        ("queue_seconds", "Time that requests waited to begin", &counts.queue_time),
        ("time_to_first_token_seconds", "From a request to its first token", &counts.time_to_first_token),
        ("time_between_tokens_seconds", "From a token to the next of its sequence", &counts.token_gap),
        ("prompt_chunk_seconds", "Time that chunks of prompts took", &counts.chunk_time),
        ("decode_batch_sequences", "Sequences that made one step together", &counts.decode_batch),
    ]
}
