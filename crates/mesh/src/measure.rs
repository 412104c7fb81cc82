//! How long collectives take here: what a model of a mesh's speed is made from.

use crate::{
    AllGatherConfig, AllReduceConfig, AllToAllConfig, Collective, Group, Mesh, Rank, ReduceScatterConfig,
    TransportError,
};
use std::time::{Duration, Instant};

/// Values of a matrix where bandwidth is measured: 4 MiB, which no cache of one core holds.
const LARGE: usize = 1 << 20;
/// How long the calls of one measurement take together.
const TIME: Duration = Duration::from_millis(100);
/// Measurements of each kind, of which the fastest counts: what else runs on the machine makes the others slower.
const REPETITIONS: usize = 3;

/// What a collective costs each device: so long for a call, and so many bytes sent in a second beside.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Seconds of a call that moves next to nothing.
    pub seconds: f64,
    /// Bytes that a device sends in a second, to all others together, when it sends many.
    pub bytes_per_second: f64,
}

impl Cost {
    /// The seconds of a call in which each device sends so many bytes.
    pub fn seconds_of(&self, bytes_sent: u64) -> f64 {
        self.seconds + bytes_sent as f64 / self.bytes_per_second
    }
}

/// Measures the all_gather over all devices, in some tenths of a second. All ranks call it, and all get what rank 0
/// measured.
///
/// # Errors
/// If a rank fails or does not come.
///
/// # Panics
/// On a mesh of one device, which sends nothing.
pub fn latency_and_bandwidth(mesh: &Mesh) -> Result<Cost, TransportError> {
    cost(mesh, Collective::AllGather, Group::All)
}

/// Measures a collective over a group, as [`latency_and_bandwidth`]. A barrier, which moves nothing, has no bandwidth
/// (0 bytes a second).
///
/// # Errors
/// If a rank fails or does not come.
///
/// # Panics
/// On a mesh of one device, which sends nothing.
pub fn cost(mesh: &Mesh, collective: Collective, group: Group) -> Result<Cost, TransportError> {
    assert!(mesh.shape().devices() > 1, "one device sends nothing");
    // The smallest matrix that every member has a part of.
    let small = fastest(mesh, collective, group, mesh.shape().members(group))?;
    let before = mesh.traffic();
    call(mesh, collective, group, LARGE)?;
    let sent = (mesh.traffic() - before).of(collective).sent;
    let large = fastest(mesh, collective, group, LARGE)?;
    // What is faster than a small call is noise.
    let bytes_per_second = sent as f64 / (large - small).max(small / 100.0);
    let mine = [small, bytes_per_second].map(f64::to_ne_bytes).concat();
    let told = mesh.broadcast((mesh.rank() == Rank(0)).then_some(mine), Rank(0), Group::All)?;
    let number =
        |index: usize| told[8 * index..].first_chunk().map_or(0.0, |bytes| f64::from_ne_bytes(*bytes));
    Ok(Cost { seconds: number(0), bytes_per_second: number(1) })
}

/// Seconds of a call. All ranks make as many calls.
fn fastest(mesh: &Mesh, collective: Collective, group: Group, values: usize) -> Result<f64, TransportError> {
    let time = |calls: u32| {
        mesh.barrier(Group::All)?;
        let start = Instant::now();
        for _ in 0..calls {
            call(mesh, collective, group, values)?;
        }
        Ok(start.elapsed().as_secs_f64() / f64::from(calls))
    };
    time(3)?;
    let estimate = time(3)?;
    let calls = (TIME.as_secs_f64() / estimate).clamp(3.0, 20_000.0) as u32;
    let calls = (mesh.rank() == Rank(0)).then(|| calls.to_ne_bytes().to_vec());
    let calls = mesh.broadcast(calls, Rank(0), Group::All)?;
    let calls = calls.first_chunk().map_or(1, |bytes| u32::from_ne_bytes(*bytes));
    let mut fastest = f64::INFINITY;
    for _ in 0..REPETITIONS {
        fastest = fastest.min(time(calls)?);
    }
    Ok(fastest)
}

/// One call with a matrix of one row. What the device brings is made anew, as a forward pass makes it.
fn call(mesh: &Mesh, collective: Collective, group: Group, values: usize) -> Result<(), TransportError> {
    let members = mesh.shape().members(group);
    let values = values.next_multiple_of(members);
    match collective {
        Collective::AllGather => {
            mesh.all_gather(vec![1.0; values], values, &AllGatherConfig::features(group))?;
        }
        Collective::ReduceScatter => {
            mesh.reduce_scatter(vec![1.0; values], values, &ReduceScatterConfig::features(group))?;
        }
        Collective::AllReduce => {
            mesh.all_reduce(vec![1.0; values], values, &AllReduceConfig::new(group))?;
        }
        Collective::AllToAll => {
            let pieces = vec![vec![1.0; values / members]; members];
            mesh.all_to_all(pieces, values / members, &AllToAllConfig::new(group))?;
        }
        Collective::Broadcast => {
            let root = mesh.members(group).ranks[0];
            let bytes = (mesh.rank() == root).then(|| vec![1; 4 * values]);
            mesh.broadcast(bytes, root, group)?;
            // Its root waits for nobody; a call ends when all have it.
            mesh.barrier(group)?;
        }
        Collective::Barrier => mesh.barrier(group)?,
    }
    Ok(())
}
