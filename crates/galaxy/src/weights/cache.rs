//! A weight cache: its place, its files, and what they take.

use super::{Error, WeightFile, config::CONFIG_FILE, files::weight_files, values::device_bytes};
use crate::{plan::request::Fabric, tensorbin::Header, types::BufferType};
use dsv3_deepseek::HfConfig;
use dsv3_mesh::MeshShape;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

/// A model's weight cache for a mesh, which need not be there yet.
#[derive(Debug)]
pub struct WeightCache {
    pub(super) dir: PathBuf,
    pub(super) mesh: MeshShape,
    pub(super) files: Vec<CacheFile>,
}

/// A file of the cache.
#[derive(Debug)]
pub struct CacheFile {
    /// What it holds.
    pub file: WeightFile,
    /// Whether it is one of those that are asked for.
    pub is_wanted: bool,
    pub(super) header: Header,
    header_bytes: u64,
}

impl CacheFile {
    /// The file's length.
    pub fn bytes(&self) -> u64 {
        self.header_bytes + self.header.data_bytes()
    }

    /// Bytes that a device holds of it, what banks are padded with included.
    pub fn device_bytes(&self) -> u64 {
        device_bytes(&self.header.spec)
    }

    /// Bytes of all its buffers.
    pub fn data_bytes(&self) -> u64 {
        self.header.buffers().iter().map(|span| span.bytes).sum()
    }
}

/// The model as a mesh runs it: with fewer layers, or without the layer that predicts further tokens.
///
/// # Errors
/// More layers than the model has, or none.
pub fn with_layers(hf: &HfConfig, layers: Option<usize>, mtp: bool) -> Result<HfConfig, Error> {
    let mut hf = hf.clone();
    if let Some(layers) = layers {
        if layers == 0 || layers > hf.num_hidden_layers {
            return Err(Error::Layers { asked: layers, of: hf.num_hidden_layers });
        }
        hf.num_hidden_layers = layers;
        hf.first_k_dense_replace = hf.first_k_dense_replace.min(layers);
    }
    if !mtp {
        hf.mtp_layers = 0;
    }
    Ok(hf)
}

impl WeightCache {
    /// The cache of a model under `root`: `<N>_layers/mesh_<R>x<C>`, or `<N>_layers_mtp/...` where it has an MTP layer. Of
    /// it the files of some layers are asked for, or all: the embedding with the first layer, the last norm and the head
    /// with the last; the MTP layer is the one after the last.
    ///
    /// # Errors
    /// A model that upstream's modules cannot run, or that does not divide over the mesh; layers that it does not have.
    pub fn new(
        root: &Path,
        hf: &HfConfig,
        mesh: MeshShape,
        layers: Option<&BTreeSet<usize>>,
    ) -> Result<Self, Error> {
        Self::for_fabric(root, hf, (mesh, Fabric::Line), layers)
    }

    /// The same for a mesh whose chips are connected so: see [`weight_files`].
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn for_fabric(
        root: &Path,
        hf: &HfConfig,
        (mesh, fabric): (MeshShape, Fabric),
        layers: Option<&BTreeSet<usize>>,
    ) -> Result<Self, Error> {
        let last = hf.num_hidden_layers + hf.mtp_layers - 1;
        if let Some(&layer) = layers.and_then(|layers| layers.iter().find(|&&layer| layer > last)) {
            return Err(Error::Layer { layer, last });
        }
        let mtp = if hf.mtp_layers > 0 { "_mtp" } else { "" };
        let dir = root.join(format!("{}_layers{mtp}", hf.num_hidden_layers)).join(format!("mesh_{mesh}"));
        let of_file = |file: WeightFile| {
            let header = file.header(mesh)?;
            let header_bytes = header.encode().len() as u64;
            let is_wanted = layers.is_none_or(|layers| layers.contains(&file.layer));
            Ok(CacheFile { file, is_wanted, header, header_bytes })
        };
        let files = weight_files(hf, mesh, fabric)?.into_iter().map(of_file).collect::<Result<_, Error>>()?;
        Ok(Self { dir, mesh, files })
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path of its config.json.
    pub fn config_path(&self) -> PathBuf {
        self.dir.join(CONFIG_FILE)
    }

    /// All its files.
    pub fn files(&self) -> &[CacheFile] {
        &self.files
    }

    /// Bytes of the files that are asked for.
    pub fn wanted_bytes(&self) -> u64 {
        self.files.iter().filter(|file| file.is_wanted).map(CacheFile::bytes).sum()
    }

    /// Bytes of DRAM that the weights of the whole cache take on each device, what banks are padded with included.
    pub fn device_bytes(&self) -> u64 {
        let in_dram = |file: &&CacheFile| file.header.spec.memory_config.buffer_type == BufferType::Dram;
        self.files.iter().filter(in_dram).map(CacheFile::device_bytes).sum()
    }
}
