//! How ranks come together: they compare what they start from, take the leader's orders, load, and wait for each other.

use super::{Room, share::Share};
use crate::{args::DeviceArgs, model::OpenModel, operator_configs::OperatorConfigs};
use anyhow::{Context, Result, bail};
use dsv3_engine::{LEADER, Leader, follow};
use dsv3_mesh::{Group, Mesh, Rank};
use dsv3_runtime::Device;
use serde::{Deserialize, Serialize};
use std::thread::{self, JoinHandle};

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
    let own: Vec<_> = ranks.iter().map(Mesh::rank).collect();
    model.prepare(args.mesh.layout.layout(), &own)?;
    let mut ranks = ranks.into_iter();
    let mesh = ranks.next().context("a mesh has a first rank")?;
    let followers = ranks.map(|mesh| {
        let model = model.clone();
        let name = format!("dsv3-rank-{}", mesh.rank().0);
        let follower = move || run_follower(&model, &mesh, args);
        thread::Builder::new().name(name).spawn(follower).context("a thread for a rank")
    });
    let followers = Followers(followers.collect::<Result<_>>()?);
    // Where it fails it lets go of the mesh, and the followers end.
    Ok((begin(model, mesh, orders, args)?, followers))
}

fn begin(model: &OpenModel, mesh: Mesh, orders: Orders, args: DeviceArgs) -> Result<Leader<Share>> {
    compare(&mesh, &facts(model, args), args)?;
    let bytes = serde_json::to_vec(&orders).context("the orders for all ranks")?;
    mesh.broadcast(Some(bytes), LEADER, Group::All)?;
    let share = open(model, &mesh, orders, args)?;
    Ok(Leader::new(share, mesh))
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
    compare(mesh, &facts(model, args), args)?;
    let orders = mesh.broadcast(None, LEADER, Group::All)?;
    let orders = serde_json::from_slice(&orders).context("the leader's orders")?;
    let mut share = open(model, mesh, orders, args)?;
    Ok(follow(&mut share, mesh)?)
}

/// The ranks that run in this process.
fn join(args: DeviceArgs) -> Result<Vec<Mesh>> {
    let shape = args.mesh.layout.mesh;
    Ok(Mesh::threads(shape).into_iter().map(|mesh| mesh.with_timeout(args.mesh.timeout())).collect())
}

/// Loads a rank's share, and waits until all others have theirs.
fn open(model: &OpenModel, mesh: &Mesh, orders: Orders, args: DeviceArgs) -> Result<Share> {
    let layout = args.mesh.layout.layout();
    let device = Device::of_rank(mesh.clone(), threads(args))?;
    let share = Share::open(model, layout, orders.configs, orders.room, device, args.load)?;
    mesh.clone().with_timeout(args.mesh.start_timeout()).barrier(Group::All)?;
    Ok(share)
}

/// Threads of a device: as many as are asked for, or the cores by the devices that share them.
fn threads(args: DeviceArgs) -> usize {
    let cores = || thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let devices = args.mesh.layout.mesh.devices();
    args.threads.map_or_else(|| (cores() / devices).max(1), usize::from)
}

fn facts(model: &OpenModel, args: DeviceArgs) -> Facts {
    let own = [
        ("the version of dsv3", env!("CARGO_PKG_VERSION").to_owned()),
        ("--mesh", args.mesh.layout.layout().to_string()),
    ];
    own.into_iter().chain(model.facts()).map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Compares with the leader's facts.
///
/// # Errors
/// The first difference, by the ranks' names; on every rank the same.
fn compare(mesh: &Mesh, facts: &Facts, args: DeviceArgs) -> Result<()> {
    if mesh.shape().devices() == 1 {
        return Ok(());
    }
    let patient = mesh.clone().with_timeout(args.mesh.start_timeout());
    let bytes = serde_json::to_vec(facts).context("facts to compare")?;
    let all = patient.all_gather_bytes(bytes, Group::All)?;
    let all: Vec<Facts> = all
        .iter()
        .map(|facts| serde_json::from_slice(facts))
        .collect::<Result<_, _>>()
        .context("facts of ranks")?;
    let first = &all[0];
    for (rank, facts) in all.iter().enumerate() {
        let differs = first.iter().zip(facts).find(|(expected, got)| expected != got);
        if let Some(((name, expected), (_, got))) = differs {
            let (peer, leader) = (mesh.peer(Rank(rank)), mesh.peer(LEADER));
            bail!("{peer} starts from something else: {name} is {got}, on {leader} it is {expected}");
        }
    }
    Ok(())
}
