//! Stage 1: what becomes of each tensor of a checkpoint.
//!
//! A tensor whose bytes serve as they are is not copied: its saved weight points into the checkpoint. Only what the
//! kernels cannot read in place is written.

use crate::{
    Checkpoint, Dtype, Error, Extent, Location, RawTensor, SavedScales, SavedWeight, WeightPath, WeightSpec,
    validate_scales,
};
use dsv3_kernels::Format;
use dsv3_mesh::{MeshShape, Rank};
use std::{
    collections::HashMap,
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

/// The file that written tensors go to, one after another.
pub(crate) const WEIGHTS_FILE: &str = "weights.bin";
/// Written tensors start at multiples of this, a cache line.
const ALIGNMENT: u64 = 64;

/// A count of tensors and their bytes, scales included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Tensors.
    pub tensors: usize,
    /// Bytes.
    pub bytes: u64,
}

impl Tally {
    fn add(&mut self, bytes: u64) {
        self.tensors += 1;
        self.bytes += bytes;
    }
}

/// What stage 1 did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConvertReport {
    /// Weights used in place, where the checkpoint has them.
    pub in_place: Tally,
    /// Weights written to the cache because no kernel reads F16: widened to f32, without loss.
    pub widened: Tally,
}

/// How far stage 1 is.
#[derive(Clone, Copy, Debug)]
pub struct ConvertProgress<'a> {
    /// The weight that was just done.
    pub tensor: &'a str,
    /// Bytes of the checkpoint that are done, its scales included.
    pub bytes: u64,
    /// Bytes of the checkpoint.
    pub total: u64,
}

/// Where stage 1 writes, and whom it tells how far it is.
pub struct WeightOutput<'a> {
    mesh: MeshShape,
    rank: Rank,
    path: PathBuf,
    file: Option<BufWriter<File>>,
    offset: u64,
    report: ConvertReport,
    /// What has been saved, by source: a tensor with two uses is saved once.
    saved: HashMap<String, SavedWeight>,
    progress: &'a mut dyn FnMut(ConvertProgress<'_>),
}

impl<'a> WeightOutput<'a> {
    /// An output into the directory `dir` for one rank of a mesh.
    pub fn new(
        dir: &Path,
        mesh: MeshShape,
        rank: Rank,
        progress: &'a mut dyn FnMut(ConvertProgress<'_>),
    ) -> Self {
        let path = dir.join(WEIGHTS_FILE);
        Self {
            mesh,
            rank,
            path,
            file: None,
            offset: 0,
            report: ConvertReport::default(),
            saved: HashMap::new(),
            progress,
        }
    }

    /// The mesh that is converted for.
    pub fn mesh(&self) -> MeshShape {
        self.mesh
    }

    /// Bytes written so far.
    pub(crate) fn written(&self) -> u64 {
        self.offset
    }

    /// Writes what is still buffered, makes it durable, and tells what was done.
    ///
    /// # Errors
    /// A failing write.
    pub fn finish(self) -> Result<ConvertReport, Error> {
        if let Some(file) = self.file {
            let file = file.into_inner().map_err(|error| Error::io(&self.path)(error.into_error()))?;
            file.sync_all().map_err(Error::io(&self.path))?;
        }
        Ok(self.report)
    }

    /// Saves one weight, or notes where it already lies.
    ///
    /// # Errors
    /// A tensor that is missing, misshapen or of an unsupported type, scales that are not numbers, a failing write.
    pub fn save(
        &mut self,
        path: &WeightPath,
        spec: &WeightSpec,
        checkpoint: &Checkpoint,
    ) -> Result<SavedWeight, Error> {
        let tensor = checkpoint.tensor(&spec.source)?;
        if tensor.info.shape != spec.shape {
            return Err(spec.error(format!(
                "expected shape {:?}, as config.json says, got {:?}",
                spec.shape, tensor.info.shape
            )));
        }
        if spec.placement.local_range(&spec.source, &spec.shape, self.mesh, self.rank)?.is_some() {
            return Err(
                spec.error(format!("{path} is to be split over a {} mesh; only 1x1 is converted", self.mesh))
            );
        }
        if let Some(saved) = self.saved.get(&spec.source) {
            return Ok(saved.clone());
        }
        let saved = match tensor.info.dtype {
            Dtype::F32 => Self::in_place(spec, checkpoint, &tensor, Format::F32),
            Dtype::Bf16 => Self::in_place(spec, checkpoint, &tensor, Format::Bf16),
            Dtype::F8E4M3 => Self::fp8(spec, checkpoint, &tensor)?,
            Dtype::F16 => self.widen(spec, &tensor)?,
            dtype @ Dtype::Unsupported(_) => {
                return Err(spec.error(format!("expected F32, F16, BF16 or F8_E4M3, got {dtype}")));
            }
        };
        saved.validate()?;
        if let [_] = spec.shape[..] {
            check_finite(spec, &tensor)?;
        }
        let bytes = saved.data.length + saved.scales.as_ref().map_or(0, |scales| scales.data.length);
        match saved.data.location {
            Location::Checkpoint => self.report.in_place.add(bytes),
            Location::Cache => self.report.widened.add(bytes),
        }
        let bytes = self.report.in_place.bytes + self.report.widened.bytes;
        (self.progress)(ConvertProgress { tensor: &spec.source, bytes, total: checkpoint.total_bytes() });
        self.saved.insert(spec.source.clone(), saved.clone());
        Ok(saved)
    }

    fn in_place(
        spec: &WeightSpec,
        checkpoint: &Checkpoint,
        tensor: &RawTensor,
        format: Format,
    ) -> SavedWeight {
        SavedWeight {
            source: spec.source.clone(),
            format,
            shape: spec.shape.clone(),
            data: in_checkpoint(checkpoint, tensor),
            scales: None,
        }
    }

    fn fp8(spec: &WeightSpec, checkpoint: &Checkpoint, tensor: &RawTensor) -> Result<SavedWeight, Error> {
        let block = spec
            .scale_block
            .ok_or_else(|| spec.error("is F8_E4M3, but config.json has no quantization_config".to_owned()))?;
        let scales = checkpoint.scales(&spec.source, block)?;
        validate_scales(&scales.info, scales.bytes.as_slice())?;
        let scales = SavedScales { block, data: in_checkpoint(checkpoint, &scales) };
        Ok(SavedWeight { scales: Some(scales), ..Self::in_place(spec, checkpoint, tensor, Format::Fp8) })
    }

    /// Writes an F16 tensor as f32.
    fn widen(&mut self, spec: &WeightSpec, tensor: &RawTensor) -> Result<SavedWeight, Error> {
        let offset = self.offset.next_multiple_of(ALIGNMENT);
        let padding = offset - self.offset;
        let halves = tensor.bytes.as_slice().as_chunks::<2>().0;
        self.append(padding, halves).map_err(Error::io(&self.path))?;
        let length = halves.len() as u64 * 4;
        self.offset = offset + length;
        Ok(SavedWeight {
            source: spec.source.clone(),
            format: Format::F32,
            shape: spec.shape.clone(),
            data: Extent { location: Location::Cache, file: WEIGHTS_FILE.into(), offset, length },
            scales: None,
        })
    }

    fn append(&mut self, padding: u64, halves: &[[u8; 2]]) -> std::io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(BufWriter::with_capacity(1 << 20, File::create(&self.path)?)),
        };
        file.write_all(&vec![0; padding as usize])?;
        for &half in halves {
            file.write_all(&dsv3_kernels::f16_to_f32(u16::from_le_bytes(half)).to_le_bytes())?;
        }
        Ok(())
    }
}

impl WeightSpec {
    fn error(&self, message: String) -> Error {
        Error::Tensor { name: self.source.clone(), message }
    }
}

fn in_checkpoint(checkpoint: &Checkpoint, tensor: &RawTensor) -> Extent {
    let info = &tensor.info;
    let file = checkpoint.shard(info).name().into();
    Extent { location: Location::Checkpoint, file, offset: info.offset, length: info.length }
}

/// Refuses a norm or a bias that holds what is no number: it would make every output one.
fn check_finite(spec: &WeightSpec, tensor: &RawTensor) -> Result<(), Error> {
    let values = tensor.to_f32()?;
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(spec.error(format!("expected finite values, got {} at {index}", values[index]))),
        None => Ok(()),
    }
}
