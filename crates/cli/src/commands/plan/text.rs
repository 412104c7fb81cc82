//! A plan, for people.

use super::{
    Plan,
    holdings::{Device, Host},
    machines::{Facts, Link},
    predict::{Exchange, Prediction},
};
use crate::commands::bench::{digits, table::Table};
use indicatif::{DecimalBytes, HumanCount};
use std::fmt;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let devices = self.layout.mesh.devices();
        writeln!(f, "{}: {}", self.model, describe(devices, self.layout))?;
        if let Some(fullest) = self.devices.iter().max_by_key(|device| device.bytes) {
            writeln!(f, "\n{} holds", who(fullest, devices))?;
            write!(f, "{}", self.holdings(fullest).text())?;
            for device in self.devices.iter().filter(|device| device.ranks != fullest.ranks) {
                let missing = DecimalBytes(fullest.bytes - device.bytes);
                writeln!(f, "  {} holds {missing} less", who(device, devices))?;
            }
        }
        writeln!(f, "\n{}", self.host)?;
        writeln!(f, "{}", self.machines)?;
        let (batch, context) = (self.cache.sequences, self.cache.context);
        let of = if batch == 1 { String::new() } else { format!(" of {batch} sequences") };
        writeln!(f, "\nA decode step{of} at {context} tokens: {}", self.decode)?;
        writeln!(f, "\nA prompt of {} tokens: {}", self.prefill.tokens, self.prefill)
    }
}

fn describe(devices: usize, layout: dsv3_mesh::Layout) -> String {
    match devices {
        1 => "1 device".to_owned(),
        _ => format!("{} devices, experts by {}", layout.mesh, layout.experts),
    }
}

/// `Each device`, `Device 3`, `Each of the devices 1, 3`, of many the first.
fn who(device: &Device, devices: usize) -> String {
    const SHOWN: usize = 8;
    let numbers: Vec<_> = device.ranks.iter().take(SHOWN).map(ToString::to_string).collect();
    let list = numbers.join(", ");
    match device.ranks.len() {
        1 if devices == 1 => "It".to_owned(),
        all if all == devices => "Each device".to_owned(),
        1 => format!("Device {list}"),
        all if all > SHOWN => format!("Each of the {all} devices {list}, ..."),
        _ => format!("Each of the devices {list}"),
    }
}

impl Plan {
    fn holdings(&self, device: &Device) -> Table {
        let mut table = Table::new(["", "format", "tensors", "bytes"]);
        let mut row = |name: String, format: &str, tensors: String, bytes: u64| {
            table.row(vec![format!("  {name}"), format.to_owned(), tensors, DecimalBytes(bytes).to_string()]);
        };
        for weights in &device.weights {
            let tensors = HumanCount(weights.tensors as u64).to_string();
            row(weights.kind.to_owned(), &weights.format, tensors, weights.bytes);
        }
        let cache = &self.cache;
        let sequences =
            if cache.sequences == 1 { String::new() } else { format!("{} sequences of ", cache.sequences) };
        let format = serde_json::to_value(cache.format).ok();
        let format = format.as_ref().and_then(|format| format.as_str()).unwrap_or_default();
        row("all weights".to_owned(), "", String::new(), device.weight_bytes);
        row("latent cache of 1,000 tokens".to_owned(), format, String::new(), cache.bytes_per_1000_tokens);
        let room = format!("latent cache, {sequences}{} tokens", cache.context);
        row(room, format, String::new(), device.cache_bytes);
        row("scratch, about".to_owned(), "f32", String::new(), device.scratch_bytes);
        row("together".to_owned(), "", String::new(), device.bytes);
        table
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let devices =
            if self.devices == 1 { "1 device".to_owned() } else { format!("{} devices", self.devices) };
        write!(f, "memory: a host of {devices} needs {}", DecimalBytes(self.bytes))?;
        match (self.free, self.fits) {
            (Some(free), Some(true)) => write!(f, " of {} that are free: FITS", DecimalBytes(free)),
            (Some(free), _) => write!(
                f,
                ", {} are free: DOES NOT FIT, {} are missing",
                DecimalBytes(free),
                DecimalBytes(self.bytes.saturating_sub(free))
            ),
            (None, _) => write!(f, "; this system does not tell what is free"),
        }
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts =
            if self.hosts == 1 { "1 host".to_owned() } else { format!("{} hosts, each with", self.hosts) };
        write!(
            f,
            "machines: {hosts} {} GB/s of memory, {} GFLOP/s{}",
            digits(self.bandwidth / 1e9),
            digits(self.flops / 1e9),
            if self.is_measured { " (measured now)" } else { "" }
        )?;
        if let Some(link) = self.inside {
            write!(f, "; between its devices {link}")?;
        }
        match self.between {
            Some(link) => write!(f, "; between hosts {link}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} us and {} GB/s", digits(self.seconds * 1e6), digits(self.bytes_per_second / 1e9))
    }
}

impl fmt::Display for Prediction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} tokens/s at most", digits(self.tokens_per_second))?;
        let tokens = self.tokens as f64;
        let each = |bytes: u64| DecimalBytes((bytes as f64 / tokens).round() as u64);
        let seconds = self.seconds;
        let milliseconds = |seconds: f64| format!("{} ms", digits(seconds * 1e3));
        let mut table = Table::new(["", "a step", "a token"]);
        let mut row =
            |name: &str, step: String, token: String| table.row(vec![format!("  {name}"), step, token]);
        let mut bytes =
            |name: &str, bytes: u64| row(name, DecimalBytes(bytes).to_string(), each(bytes).to_string());
        bytes("weights read by a device", self.weight_bytes);
        bytes("cache read by a device", self.cache_bytes);
        bytes("sent by device 0", self.sent);
        bytes("received by device 0", self.received);
        for (name, time) in [
            ("time to read", seconds.read),
            ("time to compute", seconds.compute),
            ("time of exchanges alone", seconds.latency),
            ("time to move", seconds.transfer),
            ("time", seconds.all),
        ] {
            row(name, milliseconds(time), milliseconds(time / tokens));
        }
        write!(f, "{}", table.text())?;
        if self.collectives.is_empty() {
            return write!(f, "  nothing moves between devices");
        }
        writeln!(f, "  of the time {}; it moves", bound(self))?;
        write!(f, "{}", moves(&self.collectives).text().trim_end())
    }
}

/// What takes longest.
fn bound(prediction: &Prediction) -> String {
    let seconds = prediction.seconds;
    let share = (seconds.latency + seconds.transfer) / seconds.all;
    let limit = if prediction.is_bound_by_exchange() { ": the network is the limit" } else { "" };
    format!("{:.0} % are exchanges between devices{limit}", 100.0 * share)
}

fn moves(collectives: &[Exchange]) -> Table {
    let mut table = Table::new(["", "over", "layers", "exchanges", "sent a layer", "sent", "received"]);
    for exchange in collectives {
        table.row(vec![
            format!("  {}", exchange.name),
            exchange.group.clone(),
            exchange.times.to_string(),
            exchange.exchanges.to_string(),
            DecimalBytes(exchange.sent / exchange.times).to_string(),
            DecimalBytes(exchange.sent).to_string(),
            DecimalBytes(exchange.received).to_string(),
        ]);
    }
    table
}
