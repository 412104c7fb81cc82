//! Products with weights, as several modules have them.

use crate::{
    hardware::{dram_height_sharded, dram_width_sharded},
    plan::{
        PlanError,
        operators::{FromWeightConfig, LinearConfig},
        request::Dimensions,
        rules::{
            matmul::{self, Product},
            placement::{self, Placement},
        },
    },
    types::{ComputeKernelConfig, DataType, MemoryConfig, ProgramConfig},
};

/// A weight `[inner, columns]` that lies in columns over the banks of DRAM, in bfloat8_b.
pub(super) struct DramWeight<'a> {
    pub(super) what: &'a str,
    pub(super) inner: u32,
    pub(super) columns: u32,
    pub(super) compute: ComputeKernelConfig,
}

impl<'a> DramWeight<'a> {
    fn weight(&self, dimensions: &Dimensions) -> FromWeightConfig {
        let shape = [1, self.inner, self.columns];
        let memory_config = dram_width_sharded(self.inner, self.columns);
        FromWeightConfig::tiles(dimensions, &shape, DataType::Bfloat8B, memory_config)
    }

    fn product(&self, rows: u32) -> Product<'a> {
        let Self { what, inner, columns, compute } = *self;
        Product { what, rows, inner, columns, weight: DataType::Bfloat8B, compute }
    }

    /// Decode, with the left factor over so many cores.
    pub(super) fn decode(&self, dimensions: &Dimensions, in_cores: u32) -> Result<LinearConfig, PlanError> {
        let out_cores = placement::factor_cores(self.columns).cores();
        let program = matmul::dram_sharded(&self.product(dimensions.tokens), in_cores, out_cores)?;
        Ok(self.config(self.weight(dimensions), placement::COLUMNS, program))
    }

    /// Prefill of so many rows, on a grid of its own or the usual one.
    pub(super) fn prefill(
        &self,
        dimensions: &Dimensions,
        rows: u32,
        grid: Option<[u32; 2]>,
    ) -> Result<LinearConfig, PlanError> {
        let product = self.product(rows);
        let grid = grid.unwrap_or_else(|| matmul::prefill_grid(&product));
        let program = matmul::two_dimensional(&product, grid, false)?;
        Ok(self.config(self.weight(dimensions), MemoryConfig::DRAM, program))
    }

    fn config(
        &self,
        weight: FromWeightConfig,
        memory_config: Placement,
        program: ProgramConfig,
    ) -> LinearConfig {
        LinearConfig {
            input_tensor_b: weight,
            transpose_b: false,
            memory_config,
            compute_kernel_config: self.compute,
            program_config: Some(program),
        }
    }
}

/// A weight `[inner, columns]` for each of a batch of heads, whole ones in each bank of DRAM, in bfloat8_b.
pub(super) struct HeadWeights<'a> {
    pub(super) what: &'a str,
    pub(super) heads: u32,
    pub(super) inner: u32,
    pub(super) columns: u32,
    pub(super) compute: ComputeKernelConfig,
}

impl HeadWeights<'_> {
    fn weight(&self, dimensions: &Dimensions) -> FromWeightConfig {
        let shape = [1, self.heads, self.inner, self.columns];
        let memory_config = dram_height_sharded(self.heads, self.inner, self.columns);
        FromWeightConfig::tiles(dimensions, &shape, DataType::Bfloat8B, memory_config)
    }

    fn product(&self, rows: u32) -> Product<'_> {
        let Self { what, inner, columns, compute, .. } = *self;
        Product { what, rows, inner, columns, weight: DataType::Bfloat8B, compute }
    }

    /// Decode of so many rows for each head, beside the banks.
    pub(super) fn decode(&self, dimensions: &Dimensions, rows: u32) -> Result<LinearConfig, PlanError> {
        Ok(LinearConfig {
            input_tensor_b: self.weight(dimensions),
            transpose_b: false,
            memory_config: placement::beside_banks(self.heads, self.columns),
            compute_kernel_config: self.compute,
            program_config: Some(matmul::batched_dram_sharded(&self.product(rows))?),
        })
    }

    /// Prefill of so many rows for each head.
    pub(super) fn prefill(&self, dimensions: &Dimensions, rows: u32) -> Result<LinearConfig, PlanError> {
        let product = self.product(rows);
        Ok(LinearConfig {
            input_tensor_b: self.weight(dimensions),
            transpose_b: false,
            memory_config: MemoryConfig::DRAM,
            compute_kernel_config: self.compute,
            program_config: Some(matmul::two_dimensional(&product, matmul::prefill_grid(&product), false)?),
        })
    }
}

/// A weight that lies as `[columns, inner]`, interleaved.
pub(super) struct TransposedWeight<'a> {
    pub(super) what: &'a str,
    pub(super) inner: u32,
    pub(super) columns: u32,
    pub(super) dtype: DataType,
    pub(super) compute: ComputeKernelConfig,
}

impl TransposedWeight<'_> {
    fn weight(&self, dimensions: &Dimensions) -> FromWeightConfig {
        let shape = [1, 1, self.columns, self.inner];
        FromWeightConfig::tiles(dimensions, &shape, self.dtype, MemoryConfig::DRAM)
    }

    fn product(&self, rows: u32) -> Product<'_> {
        let Self { what, inner, columns, dtype, compute } = *self;
        Product { what, rows, inner, columns, weight: dtype, compute }
    }

    /// Of a tile of rows.
    pub(super) fn few_rows(
        &self,
        dimensions: &Dimensions,
        result: Placement,
    ) -> Result<LinearConfig, PlanError> {
        let program = matmul::one_dimensional(&self.product(crate::hardware::TILE))?;
        Ok(self.config(dimensions, result, program))
    }

    /// Of many rows.
    pub(super) fn many_rows(&self, dimensions: &Dimensions, rows: u32) -> Result<LinearConfig, PlanError> {
        Ok(self.config(dimensions, MemoryConfig::DRAM, self.program_of_many_rows(rows)?))
    }

    /// How many rows are laid over cores.
    pub(super) fn program_of_many_rows(&self, rows: u32) -> Result<ProgramConfig, PlanError> {
        let product = self.product(rows);
        matmul::two_dimensional(&product, matmul::prefill_grid(&product), false)
    }

    fn config(
        &self,
        dimensions: &Dimensions,
        memory_config: Placement,
        program: ProgramConfig,
    ) -> LinearConfig {
        LinearConfig {
            input_tensor_b: self.weight(dimensions),
            transpose_b: true,
            memory_config,
            compute_kernel_config: self.compute,
            program_config: Some(program),
        }
    }
}
