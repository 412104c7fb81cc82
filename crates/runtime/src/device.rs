//! A device: the threads, the kernels and the place in the mesh of one rank.

use crate::{
    Error, Tensor,
    buffer::{Buffer, MOST_BYTES},
};
use dsv3_kernels::{Chunks, Cuts, Kernels, Lanes, Pieces, Queue, Team};
use dsv3_mesh::{AllGatherConfig, AllReduceConfig, AllToAllConfig, Dim, Mesh, ReduceScatterConfig};
use std::{num::NonZeroUsize, thread};

/// Values that one piece of an element-wise operator takes: some microseconds of work.
const ROW_CHUNK_VALUES: usize = 1 << 14;

/// One rank's device. On CPUs: a team of threads, the kernels of its instruction set, and its view of the mesh.
pub struct Device {
    mesh: Mesh,
    kernels: &'static Kernels,
    team: Team,
}

impl Device {
    /// A device with its own team of `threads` threads (0: one for each available core), the caller's counted.
    ///
    /// # Errors
    /// If the operating system refuses to make the threads.
    pub fn new(mesh: Mesh, kernels: &'static Kernels, threads: usize) -> Result<Self, Error> {
        let threads = match threads {
            0 => thread::available_parallelism().map_or(1, NonZeroUsize::get),
            given => given,
        };
        let team =
            Team::new(threads).map_err(|error| Error::Request(format!("{threads} threads: {error}")))?;
        Ok(Self { mesh, kernels, team })
    }

    /// The device of a mesh of one, with the best kernels this machine has.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn single(threads: usize) -> Result<Self, Error> {
        Self::of_rank(Mesh::single(), threads)
    }

    /// The device of one rank of a mesh, with the best kernels this machine has.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn of_rank(mesh: Mesh, threads: usize) -> Result<Self, Error> {
        Self::new(mesh, Kernels::best(), threads)
    }

    /// Bytes of activations that a process keeps for the next layer and the next step at most, all its devices together.
    /// On a mesh it comes to that: what is received adds to it.
    pub const MOST_KEPT_BYTES: u64 = MOST_BYTES as u64;

    /// The kernels of this device's instruction set.
    pub fn kernels(&self) -> &'static Kernels {
        self.kernels
    }

    /// This device's view of the mesh.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// How many threads the device has.
    pub fn threads(&self) -> usize {
        self.team.threads()
    }

    /// A parallel section of `pieces` pieces of work: `f` is called on each thread, and takes pieces until none is
    /// left. A single piece stays on the caller's thread.
    pub(crate) fn section(&self, pieces: usize, f: impl Fn() + Sync) {
        match pieces {
            0 => {}
            1 => f(),
            _ => self.team.run(f),
        }
    }

    /// A section in which each thread has `lines` lines of memory to work in, which hold anything.
    pub(crate) fn section_with(&self, pieces: usize, lines: usize, f: impl Fn(&mut [Lanes]) + Sync) {
        if lines == 0 {
            return self.section(pieces, || f(&mut []));
        }
        // For as many threads as there are, however few pieces: contexts grow, and no step takes more than the first.
        let mut memory = Buffer::anything(self.threads() * lines);
        let memory = Queue::new(Chunks::new(&mut memory, Cuts::Every(lines)));
        self.section(pieces, || {
            // A thread that comes when there is none left finds the last pieces at work.
            if let Some((_, lines)) = memory.drain().next() {
                f(lines);
            }
        });
    }

    /// Runs `f` on every piece of a queue.
    pub(crate) fn for_each<P: Pieces>(&self, queue: &Queue<'_, P>, f: impl Fn(P::Piece) + Sync) {
        self.section(queue.count(), || {
            for piece in queue.drain() {
                f(piece);
            }
        });
    }

    /// Runs `f` on every piece of a queue, with `lines` lines of memory to work in, which hold anything.
    pub(crate) fn for_each_with<P: Pieces>(
        &self,
        queue: &Queue<'_, P>,
        lines: usize,
        f: impl Fn(P::Piece, &mut [Lanes]) + Sync,
    ) {
        self.section_with(queue.count(), lines, |lines| {
            for piece in queue.drain() {
                f(piece, lines);
            }
        });
    }

    /// Runs `f` on chunks of `size` values; it gets the number of the chunk. A single chunk stays on the caller's
    /// thread.
    pub fn for_each_chunk<T: Send>(&self, values: &mut [T], size: usize, f: impl Fn(usize, &mut [T]) + Sync) {
        let chunks = Queue::new(Chunks::new(values, Cuts::Every(size)));
        self.for_each(&chunks, |(number, chunk)| f(number, chunk));
    }

    /// Runs `f` on ranges of whole rows of a matrix `[rows, width]`; `f` gets the number of its first row. Small
    /// matrices stay on the caller's thread.
    pub(crate) fn for_each_row_chunk(
        &self,
        values: &mut [f32],
        width: usize,
        f: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let rows = rows_per_task(width);
        self.for_each_chunk(values, rows * width.max(1), |number, chunk| f(number * rows, chunk));
    }

    /// Puts the parts of the config's devices together: `[rows, cols]` to `[rows, cols * devices]` where features are
    /// gathered, to `[rows of all, cols]` where tokens are.
    ///
    /// # Errors
    /// If another rank does not come.
    pub fn all_gather(&self, x: Tensor, config: &AllGatherConfig) -> Result<Tensor, Error> {
        let (rows, cols) = (x.rows(), x.cols());
        let values = self.mesh.all_gather(x.into_vec(), cols, config)?;
        Ok(match config.dim {
            Dim::Features => {
                Tensor::from_vec(rows, cols * self.mesh.members(config.cluster_axis).count(), values)
            }
            Dim::Tokens => Tensor::from_vec(values.len() / cols, cols, values),
        })
    }

    /// Adds over the config's devices and keeps this device's features: `[rows, cols]` to `[rows, cols / devices]`.
    ///
    /// # Errors
    /// If another rank does not come.
    pub fn reduce_scatter(&self, x: Tensor, config: &ReduceScatterConfig) -> Result<Tensor, Error> {
        assert_eq!(config.dim, Dim::Features, "what is added up is scattered by features");
        let (rows, cols) = (x.rows(), x.cols());
        let values = self.mesh.reduce_scatter(x.into_vec(), cols, config)?;
        Ok(Tensor::from_vec(rows, cols / self.mesh.members(config.cluster_axis).count(), values))
    }

    /// Adds over the config's devices: `[rows, cols]` to `[rows, cols]`.
    ///
    /// # Errors
    /// If another rank does not come.
    pub fn all_reduce(&self, x: Tensor, config: &AllReduceConfig) -> Result<Tensor, Error> {
        let (rows, cols) = (x.rows(), x.cols());
        Ok(Tensor::from_vec(rows, cols, self.mesh.all_reduce(x.into_vec(), cols, config)?))
    }

    /// Gives each of the config's devices its matrix, and gets one from each: `[any number of rows, cols]`.
    ///
    /// # Errors
    /// If another rank does not come.
    pub fn all_to_all(&self, pieces: Vec<Tensor>, config: &AllToAllConfig) -> Result<Vec<Tensor>, Error> {
        let cols = pieces[0].cols();
        let pieces = pieces.into_iter().map(Tensor::into_vec).collect();
        let pieces = self.mesh.all_to_all(pieces, cols, config)?;
        Ok(pieces.into_iter().map(|piece| Tensor::from_vec(piece.len() / cols, cols, piece)).collect())
    }
}

/// Rows that make a task of an operator that goes over `width` values a row.
pub(crate) fn rows_per_task(width: usize) -> usize {
    (ROW_CHUNK_VALUES / width.max(1)).max(1)
}
