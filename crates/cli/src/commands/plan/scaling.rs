//! A table over hosts and links: how far a network carries a model.

use super::{
    Lengths, Plan,
    machines::{Facts, Link},
    predict::{LaidOut, Prediction},
    subject::Subject,
};
use crate::{
    args::PlanArgs,
    commands::bench::{digits, table::Table},
    operator_configs::OperatorConfigs,
    output,
};
use anyhow::Result;
use dsv3_mesh::{Layout, MeshShape};
use indicatif::DecimalBytes;
use serde::Serialize;

/// Hosts, each one device, all in one row.
const HOSTS: [&str; 4] = ["1x1", "1x2", "1x4", "1x8"];
/// Gbit/s.
const LINKS: [f64; 4] = [10.0, 25.0, 100.0, 400.0];

/// One number of hosts with one link.
#[derive(Serialize)]
struct Row {
    hosts: usize,
    /// Gbit/s; none where there is one host.
    link: Option<f64>,
    bytes: u64,
    fits: Option<bool>,
    decode: Summary,
    prefill: Summary,
}

#[derive(Serialize)]
struct Summary {
    tokens_per_second: f64,
    /// The share of the time in which devices exchange.
    exchange_share: f64,
    /// Whether that is longer than they read and compute.
    is_bound_by_exchange: bool,
    /// Bytes that a device sends for each token.
    sent_per_token: f64,
}

impl Summary {
    fn of(prediction: &Prediction) -> Self {
        let seconds = prediction.seconds;
        Self {
            tokens_per_second: prediction.tokens_per_second,
            exchange_share: (seconds.latency + seconds.transfer) / seconds.all,
            is_bound_by_exchange: prediction.is_bound_by_exchange(),
            sent_per_token: prediction.sent as f64 / prediction.tokens as f64,
        }
    }

    /// `12.3`, with a star where the network is the limit.
    fn text(&self) -> String {
        digits(self.tokens_per_second) + if self.is_bound_by_exchange { "*" } else { " " }
    }
}

/// Runs the command.
///
/// # Errors
/// A model that does not divide over eight devices.
pub(super) fn run(args: &PlanArgs, subject: &Subject, lengths: Lengths) -> Result<()> {
    let alone = Facts::resolve(args.machines, MeshShape::SINGLE)?;
    let mut rows = Vec::new();
    for hosts in HOSTS {
        let layout = Layout { mesh: hosts.parse()?, experts: args.layout.experts };
        let hosts = layout.mesh.devices();
        let configs = &OperatorConfigs::generate(&subject.hf, layout)?;
        let holders = &subject.holders(layout)?[..];
        let laid = LaidOut { subject, layout, configs, holders, cache: args.kv_cache.into() };
        let links = if hosts == 1 { vec![None] } else { LINKS.map(Some).to_vec() };
        for link in links {
            let between = link.map(|gigabits| Link::between(gigabits, args.machines.latency));
            let plan = Plan::of(&laid, Facts { hosts, between, ..alone }, lengths);
            rows.push(Row {
                hosts,
                link,
                bytes: plan.host.bytes,
                fits: plan.host.fits,
                decode: Summary::of(&plan.decode),
                prefill: Summary::of(&plan.prefill),
            });
        }
    }
    output::print(&if args.json { output::pretty_json(&rows)? } else { text(&rows, &alone, args, lengths) })
}

fn text(rows: &[Row], facts: &Facts, args: &PlanArgs, Lengths { context, prompt, batch }: Lengths) -> String {
    let header = [
        "hosts",
        "Gbit/s",
        "memory of each",
        "",
        "decode tokens/s ",
        "exchanging",
        "sent a token",
        "prefill tokens/s ",
        "exchanging",
    ];
    let mut table = Table::new(header);
    let percent = |summary: &Summary| format!("{:.0} %", 100.0 * summary.exchange_share);
    for row in rows {
        let fits = match row.fits {
            Some(true) => "fits",
            Some(false) => "DOES NOT FIT",
            None => "",
        };
        table.row(vec![
            row.hosts.to_string(),
            row.link.map(digits_of_link).unwrap_or_default(),
            DecimalBytes(row.bytes).to_string(),
            fits.to_owned(),
            row.decode.text(),
            percent(&row.decode),
            DecimalBytes(row.decode.sent_per_token.round() as u64).to_string(),
            row.prefill.text(),
            percent(&row.prefill),
        ]);
    }
    format!(
        "Hosts of {} GB/s of memory and {} GFLOP/s, {} us for an exchange between them; experts by {}. Decode of {batch} \
         at {context} tokens, prefill of {prompt} tokens.\n{}* the network is the limit: devices exchange for longer than \
         they read and compute.\n",
        digits(facts.bandwidth / 1e9),
        digits(facts.flops / 1e9),
        digits(args.machines.latency),
        args.layout.experts,
        table.text()
    )
}

fn digits_of_link(gigabits: f64) -> String {
    format!("{gigabits:.0}")
}
