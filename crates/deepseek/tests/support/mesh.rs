//! The stages of a module on all ranks of a mesh, each in a thread of its own.

use super::stages::Stages;
use dsv3_deepseek::HfConfig;
use dsv3_mesh::{Axis, Layout, Mesh};
use dsv3_runtime::{Device, Error, Module, Prefix, SavedWeight, Tensor};
use serde::{Serialize, de::DeserializeOwned};
use std::{path::Path, thread};

/// A module after stages 1 and 2 on every rank.
pub struct Ranks<M: Module> {
    layout: Layout,
    ranks: Vec<Stages<M>>,
}

impl<M> Ranks<M>
where
    M: Module<Hf = HfConfig>,
    M::Weights<SavedWeight>: Serialize + DeserializeOwned,
    Stages<M>: Send + Sync,
{
    /// Runs stage 1 and 2 for the module at `at` in a checkpoint, one thread a device.
    pub fn new(layout: Layout, checkpoint: &Path, hf: &HfConfig, at: &Prefix) -> Result<Self, Error> {
        let ranks = Mesh::threads(layout.mesh).into_iter().map(|mesh| {
            let device = Device::of_rank(mesh, 1)?;
            Stages::on(device, layout.experts, checkpoint, hf, at)
        });
        Ok(Self { layout, ranks: ranks.collect::<Result<_, _>>()? })
    }

    /// Runs `f` on every rank at once.
    pub fn each<R: Send>(&self, f: impl Fn(&Stages<M>, Place) -> R + Sync) -> Vec<R> {
        thread::scope(|scope| {
            let f = &f;
            let threads: Vec<_> =
                self.ranks.iter().map(|rank| scope.spawn(move || f(rank, Place::of(rank)))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    /// Puts what the ranks have of a matrix together: columns of features, rows of tokens.
    pub fn join(&self, parts: &[Tensor]) -> Tensor {
        let columns = self.layout.mesh.size(Axis::Columns);
        let rows = parts.chunks(columns).map(|parts| {
            parts[1..].iter().fold(parts[0].clone(), |joined, part| joined.concat_columns(part))
        });
        super::concat_rows(rows)
    }
}

/// Where a rank stands.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub rows: usize,
    pub row: usize,
    columns: usize,
    column: usize,
}

impl Place {
    fn of<M: Module>(rank: &Stages<M>) -> Self {
        let mesh = rank.run.device().mesh();
        let (shape, rank) = (mesh.shape(), mesh.rank());
        Self {
            rows: shape.size(Axis::Rows),
            row: shape.coordinate(rank, Axis::Rows),
            columns: shape.size(Axis::Columns),
            column: shape.coordinate(rank, Axis::Columns),
        }
    }

    /// The rank's features of some rows.
    pub fn features(self, x: &Tensor, rows: std::ops::Range<usize>) -> Tensor {
        let width = x.cols() / self.columns;
        let first = self.column * width;
        let values = rows.clone().flat_map(|row| &x.row(row)[first..first + width]).copied().collect();
        Tensor::from_vec(rows.len(), width, values)
    }

    /// All features of some rows.
    pub fn whole(self, x: &Tensor, rows: std::ops::Range<usize>) -> Tensor {
        let values = rows.clone().flat_map(|row| x.row(row)).copied().collect();
        Tensor::from_vec(rows.len(), x.cols(), values)
    }
}
