//! A device: the threads, the kernels and the place in the mesh of one rank.

use crate::{Error, Tensor};
use dsv3_kernels::{Chunks, Kernels, MatrixMut, Part, Parts, Team};
use dsv3_mesh::{AllGatherConfig, AllReduceConfig, Dim, Mesh, ReduceScatterConfig};
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
        Self::new(Mesh::single(), Kernels::best(), threads)
    }

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

    /// Runs `f` on every part of a matrix.
    pub(crate) fn for_each_part(&self, parts: &Parts<'_>, f: impl Fn(Part<'_>) + Sync) {
        self.section(parts.count(), || {
            while let Some(part) = parts.take() {
                f(part);
            }
        });
    }

    /// Runs `f` on chunks of `size` values; it gets the number of the chunk.
    pub(crate) fn for_each_chunk<T: Send>(
        &self,
        values: &mut [T],
        size: usize,
        f: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let chunks = Chunks::new(values, size);
        self.section(chunks.count(), || {
            while let Some((number, chunk)) = chunks.take() {
                f(number, chunk);
            }
        });
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

    /// Runs `f` on every task; on the caller's thread where there is only one.
    pub fn for_each<T: Send>(&self, tasks: Vec<T>, f: impl Fn(T) + Sync) {
        let mut tasks: Vec<Option<T>> = tasks.into_iter().map(Some).collect();
        self.for_each_chunk(&mut tasks, 1, |_, task| f(task[0].take().expect("a task is run once")));
    }

    /// Puts the parts of all devices of the config's group together: `[rows, cols]` to `[rows, cols * devices]`
    /// (features), or to `[rows of all, cols]` (tokens).
    ///
    /// # Errors
    /// If a device fails or does not come.
    pub fn all_gather(&self, x: Tensor, config: &AllGatherConfig) -> Result<Tensor, Error> {
        let (rows, cols) = (x.rows(), x.cols());
        let gathered = self.mesh.all_gather(x.into_vec(), cols, config)?;
        Ok(match config.dim {
            Dim::Tokens => Tensor::from_vec(gathered.len() / cols, cols, gathered),
            Dim::Features => {
                let devices = self.mesh.shape().members(config.cluster_axis);
                Tensor::from_vec(rows, cols * devices, gathered)
            }
        })
    }

    /// Adds over the config's group and keeps this device's part: `[rows, cols]` to `[rows, cols / devices]`
    /// (features) or to `[rows / devices, cols]` (tokens).
    ///
    /// # Errors
    /// If a device fails or does not come.
    pub fn reduce_scatter(&self, x: Tensor, config: &ReduceScatterConfig) -> Result<Tensor, Error> {
        let (rows, cols) = (x.rows(), x.cols());
        let devices = self.mesh.shape().members(config.cluster_axis);
        let scattered = self.mesh.reduce_scatter(x.into_vec(), cols, config)?;
        let (rows, cols) = match config.dim {
            Dim::Tokens => (rows / devices, cols),
            Dim::Features => (rows, cols / devices),
        };
        Ok(Tensor::from_vec(rows, cols, scattered))
    }

    /// Adds over the config's group: `[rows, cols]` to `[rows, cols]`.
    ///
    /// # Errors
    /// If a device fails or does not come.
    pub fn all_reduce(&self, x: Tensor, config: &AllReduceConfig) -> Result<Tensor, Error> {
        let (rows, cols) = (x.rows(), x.cols());
        Ok(Tensor::from_vec(rows, cols, self.mesh.all_reduce(x.into_vec(), cols, config)?))
    }
}

/// Rows that make a task of an operator that goes over `width` values a row.
pub(crate) fn rows_per_task(width: usize) -> usize {
    (ROW_CHUNK_VALUES / width.max(1)).max(1)
}

/// Splits `out` into column ranges of `width`: the disjoint parts that tasks write.
pub(crate) fn column_tasks(mut out: MatrixMut<'_>, width: usize) -> Vec<(usize, MatrixMut<'_>)> {
    assert!(width > 0, "a task writes a column or more");
    let mut tasks = Vec::with_capacity(out.cols().div_ceil(width));
    let mut start = 0;
    while out.cols() > width {
        let (task, rest) = out.split_columns_at(width);
        tasks.push((start, task));
        start += width;
        out = rest;
    }
    tasks.push((start, out));
    tasks
}
