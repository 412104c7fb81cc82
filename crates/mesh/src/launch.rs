//! How this process was started.

use crate::{Peer, Rank, numa};
use std::{env, fs, thread};

/// The variables in which launchers tell a process how many there are: Open MPI's; MPICH's, Intel MPI's and others'.
const SIZE_VARIABLES: [&str; 2] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"];

/// The variables in which they tell a process which one it is.
const RANK_VARIABLES: [&str; 2] = ["OMPI_COMM_WORLD_RANK", "PMI_RANK"];

/// The variables in which they tell a process how many of them its host has.
const NEIGHBOUR_VARIABLES: [&str; 2] = ["OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"];

/// How many processes the MPI job has that this process was started in; none where it was started by itself. Reads
/// the environment only, so that a program without MPI can say what it was built without.
pub fn launched_processes() -> Option<usize> {
    first_number(&SIZE_VARIABLES)
}

/// How many of the [`launched_processes`] share this host's cores with each other; one where the launcher gave each
/// cores of its own.
pub fn launched_neighbours() -> Option<usize> {
    let neighbours = first_number(&NEIGHBOUR_VARIABLES)?;
    let bound = thread::available_parallelism().is_ok_and(|own| own.get() < numa::all_cores());
    Some(if bound { 1 } else { neighbours })
}

/// Which of the [`launched_processes`] this one is.
pub fn launched_rank() -> Option<Rank> {
    first_number(&RANK_VARIABLES).map(Rank)
}

/// Which of the [`launched_processes`] this one is, and where: for what there is to say before the processes meet.
pub fn launched_peer() -> Option<Peer> {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").ok();
    launched_rank().map(|rank| Peer { rank, host: host.map(|host| host.trim().to_owned()) })
}

fn first_number(variables: &[&str]) -> Option<usize> {
    variables.iter().find_map(|variable| env::var(variable).ok()?.parse().ok())
}
