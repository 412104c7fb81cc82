//! A device: the threads, the kernels and the place in the mesh of one rank.

use crate::{Error, Tensor};
use dsv3_kernels::{Kernels, MatrixMut};
use dsv3_mesh::{AllGatherConfig, AllReduceConfig, Mesh, ReduceScatterConfig};
use rayon::prelude::*;

/// Values that one task of an element-wise operator takes: some microseconds of work.
const ROW_CHUNK_VALUES: usize = 1 << 14;

/// One rank's device. On CPUs: a pool of threads, the kernels of its instruction set, and its view of the mesh.
pub struct Device {
    mesh: Mesh,
    kernels: &'static Kernels,
    pool: rayon::ThreadPool,
}

impl Device {
    /// A device with its own pool of `threads` threads (0: one for each available core).
    ///
    /// # Errors
    /// If the operating system refuses to make the threads.
    pub fn new(mesh: Mesh, kernels: &'static Kernels, threads: usize) -> Result<Self, Error> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("dsv3-{index}"))
            .build()
            .map_err(|error| Error::Request(format!("{threads} threads: {error}")))?;
        Ok(Self { mesh, kernels, pool })
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
        self.pool.current_num_threads()
    }

    /// Runs `f` on the device's threads. A forward pass runs inside, so that its parallel sections start from a
    /// thread of the pool, which is several times cheaper than waking the pool from outside.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        self.pool.install(f)
    }

    /// Runs `f` on every task; on the caller's thread where there is only one.
    pub fn for_each<T: Send>(&self, mut tasks: Vec<T>, f: impl Fn(T) + Send + Sync) {
        match tasks.len() {
            0 => {}
            1 => f(tasks.remove(0)),
            _ => self.run(|| tasks.into_par_iter().with_max_len(1).for_each(f)),
        }
    }

    /// Runs `f` on ranges of whole rows of a matrix `[rows, width]`; `f` gets the number of its first row. Small
    /// matrices stay on the caller's thread.
    pub fn for_each_row_chunk(
        &self,
        values: &mut [f32],
        width: usize,
        f: impl Fn(usize, &mut [f32]) + Send + Sync,
    ) {
        let rows = rows_per_task(width);
        let tasks = values.chunks_mut(rows * width.max(1)).enumerate().collect();
        self.for_each(tasks, |(index, chunk)| f(index * rows, chunk));
    }

    /// Concatenates column-wise over the config's axis: `[rows, cols]` to `[rows, cols * devices]`.
    pub fn all_gather(&self, x: Tensor, config: &AllGatherConfig) -> Tensor {
        let (rows, cols) = (x.rows(), x.cols());
        let gathered = cols * self.mesh.shape().size(config.cluster_axis);
        Tensor::from_vec(rows, gathered, self.mesh.all_gather(x.into_vec(), cols, config))
    }

    /// Adds over the config's axis and keeps this device's columns: `[rows, cols]` to `[rows, cols / devices]`.
    pub fn reduce_scatter(&self, x: Tensor, config: &ReduceScatterConfig) -> Tensor {
        let (rows, cols) = (x.rows(), x.cols());
        let scattered = cols / self.mesh.shape().size(config.cluster_axis);
        Tensor::from_vec(rows, scattered, self.mesh.reduce_scatter(x.into_vec(), cols, config))
    }

    /// Adds over the config's axis: `[rows, cols]` to `[rows, cols]`.
    pub fn all_reduce(&self, x: Tensor, config: &AllReduceConfig) -> Tensor {
        let (rows, cols) = (x.rows(), x.cols());
        Tensor::from_vec(rows, cols, self.mesh.all_reduce(x.into_vec(), cols, config))
    }
}

/// Rows that make a task of an operator that goes over `width` values a row.
pub(crate) fn rows_per_task(width: usize) -> usize {
    (ROW_CHUNK_VALUES / width.max(1)).max(1)
}

/// Splits `out` into ranges of `rows` rows: the disjoint parts that tasks write.
pub(crate) fn row_tasks(mut out: MatrixMut<'_>, rows: usize) -> Vec<(usize, MatrixMut<'_>)> {
    let mut tasks = Vec::with_capacity(out.rows().div_ceil(rows));
    let mut start = 0;
    while out.rows() > rows {
        let (task, rest) = out.split_rows_at(rows);
        tasks.push((start, task));
        start += rows;
        out = rest;
    }
    tasks.push((start, out));
    tasks
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
