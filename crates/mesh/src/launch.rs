//! How this process was started.

use std::env;

/// The variables in which launchers tell a process how many there are: Open MPI's; MPICH's, Intel MPI's and others'.
const SIZE_VARIABLES: [&str; 2] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"];

/// How many processes the MPI job has that this process was started in; none where it was started by itself. Reads
/// the environment only, so that a program without MPI can say what it was built without.
pub fn launched_processes() -> Option<usize> {
    SIZE_VARIABLES.iter().find_map(|variable| env::var(variable).ok()?.parse().ok())
}
