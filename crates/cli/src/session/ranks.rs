//! How ranks come together: they compare what they start from, take the leader's orders, load, and wait for each other.

use super::{Room, share::Share};
use crate::{
    args::{DeviceArgs, MeshArg},
    model::OpenModel,
    operator_configs::OperatorConfigs,
    output::note,
};
use anyhow::{Context, Error, Result, anyhow};
use dsv3_engine::{LEADER, Leader, follow};
use dsv3_mesh::{
    Cause, Group, Mesh, MeshShape, Rank, TransportError, launched_neighbours, launched_processes, numa,
};
use dsv3_runtime::{Device, Kernels};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    num::NonZeroUsize,
    sync::mpsc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// What all ranks must have in common before they start, each with a name for the user; or why there is none.
type Facts = Result<Vec<(String, String)>, String>;

/// How far a rank is with its share: its weights are there, or not yet, or why they are not.
type Progress = Result<bool, String>;

/// How often ranks that load tell each other how far they are, at least.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

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
    if (args.mesh.layout.mesh, ranks.len()) == (Some(MeshArg::Auto), 1) && !is_launched() {
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
        let follower = move || run_follower(Ok(&model), &mesh, args);
        thread::Builder::new().name(name).spawn(follower).context("a thread for a rank")
    });
    let followers = Followers(followers.collect::<Result<_>>()?);
    let share = begin(model, &mesh, orders, args).inspect_err(|error| abort(&mesh, error))?;
    Ok((Leader::new(share, mesh), followers))
}

fn begin(model: &OpenModel, mesh: &Mesh, orders: Orders, args: DeviceArgs) -> Result<Share> {
    compare_facts(mesh, &facts(model, args), args)?;
    let bytes = serde_json::to_vec(&orders).context("the orders for all ranks")?;
    mesh.broadcast(Some(bytes), LEADER, Group::All)?;
    open(model, mesh, orders, args)
}

/// Follows as the one rank of this process, which opens the model when it has joined the others: they are to know where
/// that fails.
///
/// # Errors
/// Only before there is a mesh; what fails later ends the job.
pub(crate) fn follow_launched(open: impl Fn() -> Result<OpenModel>, args: DeviceArgs) -> Result<()> {
    for mesh in join(args)? {
        let model = open();
        run_follower(model.as_ref(), &mesh, args);
    }
    Ok(())
}

/// How long followers have to end after the leader did. One that hangs ends with the process.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// The threads of the other ranks. Ends when these do.
pub(super) struct Followers(Vec<JoinHandle<()>>);

impl Drop for Followers {
    fn drop(&mut self) {
        let start = Instant::now();
        for follower in self.0.drain(..) {
            while !follower.is_finished() && start.elapsed() < END_TIMEOUT {
                thread::sleep(Duration::from_millis(1));
            }
            if follower.is_finished() {
                // It has told the others if it failed.
                let _ = follower.join();
            }
        }
    }
}

/// Follows as one rank; where that fails, all ranks are told.
fn run_follower(model: Result<&OpenModel, &Error>, mesh: &Mesh, args: DeviceArgs) {
    if let Err(error) = try_follow(model, mesh, args) {
        abort(mesh, &error);
    }
}

fn try_follow(model: Result<&OpenModel, &Error>, mesh: &Mesh, args: DeviceArgs) -> Result<()> {
    let facts = model.map_err(crate::one_line).and_then(|model| facts(model, args));
    compare_facts(mesh, &facts, args)?;
    let model = model.map_err(|error| anyhow!("{error:#}"))?;
    let patient = mesh.clone().with_timeout(args.mesh.start_timeout());
    let orders = patient.broadcast(None, LEADER, Group::All)?;
    let orders = serde_json::from_slice(&orders).context("the leader's orders")?;
    let mut share = open(model, mesh, orders, args)?;
    Ok(follow(&mut share, mesh)?)
}

/// Tells all ranks why this one ends.
fn abort(mesh: &Mesh, error: &Error) {
    let of_cause = |cause: &(dyn std::error::Error + 'static)| match cause.downcast_ref() {
        Some(dsv3_runtime::Error::Transport(error)) => Some(error.clone()),
        _ => cause.downcast_ref().cloned(),
    };
    let transport: Option<TransportError> = error.chain().find_map(of_cause);
    match transport {
        Some(error) => mesh.abort_because(error),
        None => mesh.abort(&crate::one_line(error)),
    }
}

/// The ranks that run in this process: the one that a launcher made it, or all of them.
fn join(args: DeviceArgs) -> Result<Vec<Mesh>> {
    let shape = args.mesh.layout.layout().mesh;
    let ranks =
        if is_launched() { vec![launched(shape, args.mesh.start_timeout())?] } else { Mesh::threads(shape) };
    Ok(ranks.into_iter().map(|mesh| mesh.with_timeout(args.mesh.timeout())).collect())
}

/// Whether this process is one of several that were started together.
pub(crate) fn is_launched() -> bool {
    launched_processes().is_some_and(|processes| processes > 1)
}

#[cfg(feature = "mpi")]
fn launched(shape: MeshShape, patience: Duration) -> Result<Mesh> {
    Ok(Mesh::mpi(shape, patience)?)
}

#[cfg(not(feature = "mpi"))]
fn launched(_: MeshShape, _: Duration) -> Result<Mesh> {
    anyhow::bail!("this dsv3 was built without MPI")
}

/// Loads a rank's share, and waits until all others have theirs. Meanwhile the ranks tell each other how far they are: one
/// that is gone or hangs ends the job also now.
fn open(model: &OpenModel, mesh: &Mesh, orders: Orders, args: DeviceArgs) -> Result<Share> {
    if mesh.shape().devices() == 1 {
        return load(model, mesh, orders, args);
    }
    thread::scope(|scope| {
        let (ended, end) = mpsc::channel();
        let all = scope.spawn(move || {
            // Others need not wait until this rank has loaded.
            wait_for_all(mesh, &end, args).inspect_err(|error| abort(mesh, error))
        });
        let share = load(model, mesh, orders, args);
        // If nobody hears it, the job has ended.
        let _ = ended.send(share.as_ref().map(|_| true).map_err(crate::one_line));
        all.join().map_err(|_| anyhow!("the wait for the other ranks panicked"))??;
        share
    })
}

fn load(model: &OpenModel, mesh: &Mesh, orders: Orders, args: DeviceArgs) -> Result<Share> {
    let layout = args.mesh.layout.layout();
    model.prepare(layout, &[mesh.rank()])?;
    let device = Device::of_rank(mesh.clone(), settle(mesh, args)?)?;
    Share::open(model, layout, orders.configs, orders.room, device, args.load)
}

/// Tells the others what comes from `end`, until all ranks have their shares.
///
/// # Errors
/// The first rank that has failed, or takes longer than the user allows.
fn wait_for_all(mesh: &Mesh, end: &mpsc::Receiver<Progress>, args: DeviceArgs) -> Result<()> {
    let interval = PROGRESS_INTERVAL.min(mesh.timeout() / 4);
    let start = Instant::now();
    let mut own = Ok(false);
    loop {
        if own == Ok(false) {
            match end.recv_timeout(interval) {
                Ok(progress) => own = progress,
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => own = Err("panicked".to_owned()),
            }
        }
        let all: Vec<Progress> = gather(mesh, &own)?;
        if let Some((rank, error)) = first_error(&all) {
            return Err(failed(mesh, rank, error));
        }
        let Some(rank) = all.iter().position(|progress| *progress == Ok(false)) else { return Ok(()) };
        if start.elapsed() > args.mesh.start_timeout() {
            let cause = Cause::Late { call: "the first step".to_owned(), timeout: args.mesh.start_timeout() };
            return Err(TransportError { peer: mesh.peer(Rank(rank)), cause }.into());
        }
    }
}

/// Brings this thread, and with it the device's, to the device's NUMA node where there are several. Gives how many
/// threads the device has: as many as are asked for, or its share of the cores.
fn settle(mesh: &Mesh, args: DeviceArgs) -> Result<usize> {
    let devices = devices_here(mesh);
    let nodes = numa::nodes();
    let mut sharers = devices;
    // Who was launched was placed by the launcher.
    if nodes.len() > 1 && devices > 1 && !is_launched() {
        let own = numa::node_of(nodes, devices, mesh.rank().0);
        numa::stay_on(own)
            .with_context(|| format!("{} cannot stay on its NUMA node", mesh.peer(mesh.rank())))?;
        sharers = (0..devices).filter(|&device| numa::node_of(nodes, devices, device) == own).count();
    }
    let cores = || thread::available_parallelism().map_or(1, NonZeroUsize::get);
    Ok(args.threads.map_or_else(|| (cores() / sharers).max(1), usize::from))
}

/// Devices that share this host's cores.
fn devices_here(mesh: &Mesh) -> usize {
    let launched = launched_neighbours().filter(|_| is_launched());
    launched.unwrap_or(mesh.shape().devices())
}

fn facts(model: &OpenModel, args: DeviceArgs) -> Facts {
    let own = [
        ("the version of dsv3", env!("CARGO_PKG_VERSION").to_owned()),
        ("--mesh", args.mesh.layout.layout().to_string()),
        // Devices that choose experts for themselves must round alike.
        ("the instruction set (--isa)", Kernels::best().isa().to_string()),
    ];
    Ok(own.into_iter().chain(model.facts()).map(|(name, value)| (name.to_owned(), value)).collect())
}

/// Compares what all ranks start from with what the leader does.
///
/// # Errors
/// The first rank that cannot start, or starts from something else; the same on every rank.
fn compare_facts(mesh: &Mesh, facts: &Facts, args: DeviceArgs) -> Result<()> {
    let patient = mesh.clone().with_timeout(args.mesh.start_timeout());
    let all: Vec<Facts> = gather(&patient, facts)?;
    if let Some((rank, error)) = first_error(&all) {
        return Err(failed(mesh, rank, error));
    }
    let all: Vec<_> = all.into_iter().flatten().collect();
    for (rank, facts) in all.iter().enumerate() {
        if let Some(((name, expected), (_, got))) = all[0].iter().zip(facts).find(|(own, other)| own != other)
        {
            let leader = mesh.peer(LEADER);
            let difference =
                format!("it starts from something else: {name} is {got}, but {expected} on {leader}");
            return Err(failed(mesh, rank, &difference));
        }
    }
    Ok(())
}

/// Tells all ranks what this one has to say. Gives what each one says.
fn gather<T: Serialize + DeserializeOwned>(mesh: &Mesh, own: &T) -> Result<Vec<T>> {
    let bytes = serde_json::to_vec(own).context("what ranks tell each other")?;
    let all = mesh.all_gather_bytes(bytes, Group::All)?;
    let all: Result<Vec<T>, _> = all.iter().map(|bytes| serde_json::from_slice(bytes)).collect();
    all.context("what ranks tell each other")
}

fn first_error<T>(all: &[Result<T, String>]) -> Option<(usize, &str)> {
    let mut all = all.iter().enumerate();
    all.find_map(|(rank, result)| result.as_ref().err().map(|error| (rank, &error[..])))
}

fn failed(mesh: &Mesh, rank: usize, error: &str) -> Error {
    TransportError { peer: mesh.peer(Rank(rank)), cause: Cause::Failed(error.to_owned()) }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follower_that_hangs_does_not_keep_the_process() {
        let hour = Duration::from_secs(3600);
        let followers = [thread::spawn(|| ()), thread::spawn(move || thread::sleep(hour))];
        let start = Instant::now();
        drop(Followers(followers.into()));
        assert!(start.elapsed() < hour / 60);
    }
}
