//! The machines of a plan: given, or this one, measured.

use crate::{args::MachineArgs, commands::bench::ceilings::Ceilings, load::free_memory};
use anyhow::{Context, Result, bail};
use dsv3_deepseek::Machines;
use dsv3_mesh::{
    Mesh, MeshShape,
    measure::{Cost, latency_and_bandwidth},
};
use dsv3_runtime::Device;
use serde::Serialize;
use std::{num::NonZeroUsize, thread};

/// Gbit/s of a link between hosts that is not given.
const USUAL_LINK: f64 = 10.0;

/// What is known of the machines, and where it comes from.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Facts {
    /// Hosts.
    pub(super) hosts: usize,
    /// Bytes in a second that a host reads.
    pub(super) bandwidth: f64,
    /// Operations in a second of a host.
    pub(super) flops: f64,
    /// Whether either was measured here.
    pub(super) is_measured: bool,
    /// Free bytes of a host; none where the system does not tell.
    pub(super) memory: Option<u64>,
    /// Between hosts, where there are several.
    pub(super) between: Option<Link>,
    /// Between devices of a host, where it has several; measured.
    pub(super) inside: Option<Link>,
}

/// What an exchange takes.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Link {
    /// Seconds where next to nothing moves.
    pub(super) seconds: f64,
    /// Bytes in a second.
    pub(super) bytes_per_second: f64,
}

impl Facts {
    /// Those of a command line, for a mesh.
    ///
    /// # Errors
    /// Devices that do not divide over the hosts, as a usage error; threads that cannot be had.
    pub(super) fn resolve(args: MachineArgs, mesh: MeshShape) -> Result<Self> {
        let devices = mesh.devices();
        let hosts = match (args.hosts, args.link) {
            (Some(hosts), _) => hosts.get(),
            (None, Some(_)) => devices,
            (None, None) => 1,
        };
        if !devices.is_multiple_of(hosts) {
            bail!("--hosts {hosts}: {devices} devices do not divide over {hosts} hosts");
        }
        let between = (hosts > 1).then(|| Link::between(args.link.unwrap_or(USUAL_LINK), args.latency));
        let inside = if devices > hosts { Some(Link::measure(devices / hosts)?) } else { None };
        let (bandwidth, flops) = match (args.bandwidth, args.flops) {
            (Some(bandwidth), Some(flops)) => (bandwidth * 1e9, flops * 1e9),
            (bandwidth, flops) => {
                let measured = Ceilings::measure(&Device::single(0)?);
                (
                    bandwidth.map_or(measured.read, |given| given * 1e9),
                    flops.map_or(measured.flops, |given| given * 1e9),
                )
            }
        };
        let memory = args.memory.map_or_else(free_memory, |given| Some((given * 1e9) as u64));
        let is_measured = args.bandwidth.is_none() || args.flops.is_none();
        Ok(Self { hosts, bandwidth, flops, is_measured, memory, between, inside })
    }

    /// As the model of a step takes them.
    pub(super) fn machines(&self) -> Machines {
        // What is not there is not used.
        let cost = |link: Option<Link>| Cost {
            seconds: link.map_or(0.0, |link| link.seconds),
            bytes_per_second: link.map_or(f64::INFINITY, |link| link.bytes_per_second),
        };
        Machines {
            hosts: self.hosts,
            read: self.bandwidth,
            flops: self.flops,
            inside: cost(self.inside),
            between: cost(self.between),
        }
    }
}

impl Link {
    /// Of so many Gbit/s and microseconds.
    pub(super) fn between(gigabits: f64, microseconds: f64) -> Self {
        Self { seconds: microseconds / 1e6, bytes_per_second: gigabits * 1e9 / 8.0 }
    }

    /// Between threads of this process, as many as there are devices, or cores if these are fewer.
    fn measure(devices: usize) -> Result<Self> {
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let columns = NonZeroUsize::new(devices.min(cores.max(2))).context("a mesh has devices")?;
        let meshes = Mesh::threads(MeshShape::new(NonZeroUsize::MIN, columns));
        let costs = thread::scope(|scope| {
            let ranks: Vec<_> =
                meshes.into_iter().map(|mesh| scope.spawn(move || latency_and_bandwidth(&mesh))).collect();
            ranks.into_iter().map(|rank| rank.join().expect("a rank does not panic")).collect::<Vec<_>>()
        });
        let cost = costs.into_iter().next().context("a mesh has a first rank")??;
        Ok(Self { seconds: cost.seconds, bytes_per_second: cost.bytes_per_second })
    }
}
