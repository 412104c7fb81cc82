//! What a process keeps of MPI while it is in a job.
#![allow(unsafe_code)]

use crate::{Axis, Group, MeshShape, Rank};
use mpi::{
    environment::Universe,
    ffi::{self, MPI_Comm},
    raw::AsRaw as _,
    topology::{Color, Communicator as _, SimpleCommunicator},
};

/// The universe, and a communicator for each group. Dropping it leaves MPI.
pub(super) struct Connection {
    /// Freed before the universe ends.
    communicators: [SimpleCommunicator; 3],
    _universe: Universe,
    /// Memory of messages with labels, to be used again.
    pub(super) heads: Vec<Vec<u8>>,
    /// Whether an exchange has failed.
    pub(super) broken: bool,
}

// SAFETY: MPI is initialised so that any thread may call it, one at a time. Whoever has the connection has it alone, by
// the mutex around it. Communicators and the universe are names of what MPI keeps; no thread owns it.
unsafe impl Send for Connection {}

/// A process in a group. Only good while its connection is.
#[derive(Clone, Copy)]
pub(super) struct Address {
    pub(super) communicator: MPI_Comm,
    pub(super) place: i32,
    /// Messages to one process in a group with one tag come in the order sent.
    pub(super) tag: i32,
}

impl Connection {
    /// Makes the communicators: all processes of the job do so at once.
    pub(super) fn new(universe: Universe, shape: MeshShape, rank: Rank) -> Self {
        let world = universe.world();
        let color = |axis| Color::with_value(shape.coordinate(rank, axis) as i32);
        let communicators = Group::EACH.map(|group| {
            let communicator = match group {
                Group::Axis(Axis::Rows) => world.split_by_color(color(Axis::Columns)),
                Group::Axis(Axis::Columns) => world.split_by_color(color(Axis::Rows)),
                Group::All => Some(world.duplicate()),
            };
            let communicator = communicator.expect("a color was given");
            // SAFETY: a communicator that was just made, and the name of a handler that MPI brings.
            unsafe { ffi::MPI_Comm_set_errhandler(communicator.as_raw(), ffi::RSMPI_ERRORS_RETURN) };
            communicator
        });
        Self { communicators, _universe: universe, heads: Vec::new(), broken: false }
    }

    /// The address of the member at a place.
    pub(super) fn peer(&self, group: Group, place: usize) -> Address {
        Address { communicator: self.communicators[group.index()].as_raw(), place: place as i32, tag: 0 }
    }

    /// Where a rank looks for what others tell it beside the exchanges.
    pub(super) fn notes(&self, rank: Rank) -> Address {
        Address { tag: 1, ..self.peer(Group::All, rank.0) }
    }
}
