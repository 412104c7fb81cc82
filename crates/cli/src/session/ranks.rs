//! How ranks come together: they compare what they start from, take the leader's orders, load, and wait for each other.

use super::{Room, share::Share};
use crate::{
    args::{DeviceArgs, MeshArg},
    model::OpenModel,
    operator_configs::OperatorConfigs,
    output::note,
};
use anyhow::{Context, Result, bail};
use dsv3_engine::{LEADER, Leader, follow};
use dsv3_mesh::{Group, Mesh, MeshShape, Rank, launched_neighbours, launched_processes, numa};
use dsv3_runtime::Device;
use serde::{Deserialize, Serialize};
use std::{
    num::NonZeroUsize,
    thread::{self, JoinHandle},
};

/// What all ranks must have in common before they start, each with a name for the user.
type Facts = Vec<(String, String)>;

/// What the leader has decided for all.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Orders {
    pub(super) configs: OperatorConfigs,
    pub(super) room: Room,
}

/// Starts the other ranks of this process, and leads them.
///
/// # Errors
/// Ranks that start from something else; a rank that cannot load its share.
pub(super) fn lead(
    model: &OpenModel,
    orders: Orders,
    args: DeviceArgs,
) -> Result<(Leader<Share>, Followers)> {
    let ranks = join(args)?;
    if (args.mesh.layout.mesh, ranks.len()) == (MeshArg::Auto, 1) && !is_launched() {
        note(format_args!("--mesh auto: this machine has one NUMA node, so one device it is"));
    }
    if ranks.len() > 1 {
        // Together, which reads the checkpoint once.
        let own: Vec<_> = ranks.iter().map(Mesh::rank).collect();
        model.prepare(args.mesh.layout.layout(), &own)?;
    }
    let mut ranks = ranks.into_iter();
    let mesh = ranks.next().context("a mesh has a first rank")?;
    let followers = ranks.map(|mesh| {
        let model = model.clone();
        let name = format!("dsv3-rank-{}", mesh.rank().0);
        let follower = move || run_follower(&model, &mesh, args);
        thread::Builder::new().name(name).spawn(follower).context("a thread for a rank")
    });
    let followers = Followers(followers.collect::<Result<_>>()?);
    let share = begin(model, &mesh, orders, args).inspect_err(|error| mesh.abort(&crate::one_line(error)))?;
    Ok((Leader::new(share, mesh), followers))
}

fn begin(model: &OpenModel, mesh: &Mesh, orders: Orders, args: DeviceArgs) -> Result<Share> {
    let all = gather_facts(mesh, &facts(model, args), args)?;
    compare(mesh, &all)?;
    let bytes = serde_json::to_vec(&orders).context("the orders for all ranks")?;
    mesh.broadcast(Some(bytes), LEADER, Group::All)?;
    open(model, mesh, orders, args)
}

/// Follows as the one rank of this process.
///
/// # Errors
/// Only before there is a mesh; what fails later ends the job.
pub(crate) fn follow_launched(model: &OpenModel, args: DeviceArgs) -> Result<()> {
    for mesh in join(args)? {
        run_follower(model, &mesh, args);
    }
    Ok(())
}

/// The threads of the other ranks. Ends when these do.
pub(super) struct Followers(Vec<JoinHandle<()>>);

impl Drop for Followers {
    fn drop(&mut self) {
        for follower in self.0.drain(..) {
            // It has told the others if it failed.
            let _ = follower.join();
        }
    }
}

/// Follows as one rank; where that fails, all ranks are told.
fn run_follower(model: &OpenModel, mesh: &Mesh, args: DeviceArgs) {
    if let Err(error) = try_follow(model, mesh, args) {
        mesh.abort(&crate::one_line(&error));
    }
}

fn try_follow(model: &OpenModel, mesh: &Mesh, args: DeviceArgs) -> Result<()> {
    gather_facts(mesh, &facts(model, args), args)?;
    let patient = mesh.clone().with_timeout(args.mesh.start_timeout());
    let orders = patient.broadcast(None, LEADER, Group::All)?;
    let orders = serde_json::from_slice(&orders).context("the leader's orders")?;
    let mut share = open(model, mesh, orders, args)?;
    Ok(follow(&mut share, mesh)?)
}

/// The ranks that run in this process: the one that a launcher made it, or all of them.
fn join(args: DeviceArgs) -> Result<Vec<Mesh>> {
    let shape = args.mesh.layout.layout().mesh;
    let ranks = if is_launched() { vec![launched(shape)?] } else { Mesh::threads(shape) };
    Ok(ranks.into_iter().map(|mesh| mesh.with_timeout(args.mesh.timeout())).collect())
}

/// Whether this process is one of several that were started together.
pub(crate) fn is_launched() -> bool {
    launched_processes().is_some_and(|processes| processes > 1)
}

#[cfg(feature = "mpi")]
fn launched(shape: MeshShape) -> Result<Mesh> {
    Ok(Mesh::mpi(shape)?)
}

#[cfg(not(feature = "mpi"))]
fn launched(_: MeshShape) -> Result<Mesh> {
    bail!("this dsv3 was built without MPI")
}

/// Loads a rank's share, and waits until all others have theirs.
fn open(model: &OpenModel, mesh: &Mesh, orders: Orders, args: DeviceArgs) -> Result<Share> {
    let layout = args.mesh.layout.layout();
    model.prepare(layout, &[mesh.rank()])?;
    let device = Device::of_rank(mesh.clone(), settle(mesh, args)?)?;
    let share = Share::open(model, layout, orders.configs, orders.room, device, args.load)?;
    mesh.clone().with_timeout(args.mesh.start_timeout()).barrier(Group::All)?;
    Ok(share)
}

/// Brings this thread, and with it the device's, to the device's NUMA node where there are several. Gives how many
/// threads the device has: as many as are asked for, or its share of the cores.
fn settle(mesh: &Mesh, args: DeviceArgs) -> Result<usize> {
    let devices = launched_neighbours().unwrap_or(mesh.shape().devices());
    let nodes = numa::nodes();
    let mut sharers = devices;
    // Who was launched was placed by the launcher.
    if nodes.len() > 1 && devices > 1 && !is_launched() {
        let own = numa::node_of(&nodes, devices, mesh.rank().0);
        numa::stay_on(own)
            .with_context(|| format!("{} cannot stay on its NUMA node", mesh.peer(mesh.rank())))?;
        sharers = (0..devices).filter(|&device| numa::node_of(&nodes, devices, device) == own).count();
    }
    let cores = || thread::available_parallelism().map_or(1, NonZeroUsize::get);
    Ok(args.threads.map_or_else(|| (cores() / sharers).max(1), usize::from))
}

fn facts(model: &OpenModel, args: DeviceArgs) -> Facts {
    let own = [
        ("the version of dsv3", env!("CARGO_PKG_VERSION").to_owned()),
        ("--mesh", args.mesh.layout.layout().to_string()),
    ];
    own.into_iter().chain(model.facts()).map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Tells all ranks what this one starts from. Gives what each one starts from.
fn gather_facts(mesh: &Mesh, facts: &Facts, args: DeviceArgs) -> Result<Vec<Facts>> {
    let patient = mesh.clone().with_timeout(args.mesh.start_timeout());
    let bytes = serde_json::to_vec(facts).context("facts to compare")?;
    let all = patient.all_gather_bytes(bytes, Group::All)?;
    let all: Result<Vec<Facts>, _> = all.iter().map(|facts| serde_json::from_slice(facts)).collect();
    all.context("what the ranks start from")
}

/// Compares all ranks with the leader.
///
/// # Errors
/// The first difference, with the name of the rank.
fn compare(mesh: &Mesh, all: &[Facts]) -> Result<()> {
    for (rank, facts) in all.iter().enumerate() {
        if let Some(((name, expected), (_, got))) = all[0].iter().zip(facts).find(|(own, other)| own != other)
        {
            let (peer, leader) = (mesh.peer(Rank(rank)), mesh.peer(LEADER));
            bail!("{peer} starts from something else: {name} is {got}, but {expected} on {leader}");
        }
    }
    Ok(())
}
