//! Rules for norms, sums and steps by element.

use super::{
    Refusal,
    arguments::{Call, dimension, of_shape, of_type, placed, rows, tiles},
    equal,
    memory::cores_of,
    must,
};
use crate::{
    hardware::TILE,
    plan::{
        rules::{kernels::register_tiles, placement::Placement},
        tensor::TensorSpec,
    },
    types::{
        BufferType, ComputeKernelConfig, CoreRangeSet, DataType, LayerNormShardedMultiCoreProgramConfig,
        Layout, MemoryConfig, MemoryLayout, ProgramConfig, ShardOrientation, ShardSpec, UnaryWithParam,
    },
};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PreArguments {
    dtype: DataType,
    #[serde(default)]
    program_config: Option<ProgramConfig>,
    compute_kernel_config: ComputeKernelConfig,
}

/// Sums of squares: a tile's first column for each row.
pub(super) fn pre_all_gather(call: &Call) -> Result<TensorSpec, Refusal> {
    let x = call.input()?;
    let arguments: PreArguments = call.arguments()?;
    tiles("input_tensor", x)?;
    program(x, arguments.program_config.as_ref(), &arguments.compute_kernel_config)?;
    let [height, _] = x.matrix();
    let mut shape = x.shape.clone();
    *shape.last_mut().expect("a tensor with dimensions") = TILE;
    let place = if arguments.program_config.is_some() {
        // The cores' sums come together on the first one.
        let grid = CoreRangeSet::rectangle(1, 1).into();
        let spec = ShardSpec { grid, shape: [height as u32, TILE], orientation: ShardOrientation::RowMajor };
        MemoryConfig::sharded(MemoryLayout::WidthSharded, BufferType::L1, spec)
    } else {
        x.memory_config.clone()
    };
    Ok(TensorSpec::tiles(&shape, place).with_dtype(arguments.dtype))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PostArguments {
    epsilon: f32,
    dtype: DataType,
    memory_config: Placement,
    #[serde(default)]
    program_config: Option<ProgramConfig>,
    compute_kernel_config: ComputeKernelConfig,
}

/// The norm, with a tile of sums from each device of a row of the mesh.
pub(super) fn post_all_gather(call: &Call) -> Result<TensorSpec, Refusal> {
    let ([x, sums], [weight]) = call.take::<2, 1>()?;
    let arguments: PostArguments = call.arguments()?;
    tiles("input_tensor", x)?;
    let devices = call.along(1)?;
    let mut shape = x.shape.clone();
    *shape.last_mut().expect("a tensor with dimensions") = TILE * devices;
    of_shape("stats", sums, &shape)?;
    norm_weight(x, weight)?;
    epsilon(arguments.epsilon)?;
    program(x, arguments.program_config.as_ref(), &arguments.compute_kernel_config)?;
    if arguments.program_config.is_some() {
        equal("memory_config", &x.memory_config, &arguments.memory_config)?;
        let shape = sums.memory_config.shard_spec.as_ref().map(|spec| cores_of(&spec.grid));
        equal("cores of stats", &Some(1), &shape)?;
    }
    Ok(TensorSpec::tiles(&x.shape, arguments.memory_config).with_dtype(arguments.dtype))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NormArguments {
    epsilon: f32,
    memory_config: Placement,
    #[serde(default)]
    program_config: Option<ProgramConfig>,
    compute_kernel_config: ComputeKernelConfig,
}

/// A norm of whole rows.
pub(super) fn rms_norm(call: &Call) -> Result<TensorSpec, Refusal> {
    let ([x], [weight]) = call.take::<1, 1>()?;
    let arguments: NormArguments = call.arguments()?;
    tiles("input_tensor", x)?;
    norm_weight(x, weight)?;
    epsilon(arguments.epsilon)?;
    program(x, arguments.program_config.as_ref(), &arguments.compute_kernel_config)?;
    if arguments.program_config.is_some() {
        equal("memory_config", &x.memory_config, &arguments.memory_config)?;
    }
    Ok(x.clone().placed(arguments.memory_config))
}

fn epsilon(epsilon: f32) -> Result<(), Refusal> {
    must(epsilon > 0.0 && epsilon < 1e-2, "epsilon", "above 0 and small", epsilon)
}

/// A weight of rows of a tile's width, as many elements as a row has.
fn norm_weight(x: &TensorSpec, weight: &TensorSpec) -> Result<(), Refusal> {
    let width = x.shape.last().copied().unwrap_or_default();
    of_shape("weight", weight, &[1, 1, width / TILE, TILE])?;
    rows("weight", weight)?;
    of_type("weight", weight, DataType::Bfloat16)
}

/// A sharded norm's cores are those of its input, and their parts its blocks.
fn program(
    x: &TensorSpec,
    program: Option<&ProgramConfig>,
    compute: &ComputeKernelConfig,
) -> Result<(), Refusal> {
    let is_sharded = x.memory_config.memory_layout == MemoryLayout::WidthSharded;
    let program = match program {
        None => return must(!is_sharded, "program_config", "one for a sharded input", "none"),
        Some(ProgramConfig::LayerNormShardedMultiCoreProgramConfig(program)) => program,
        Some(other) => {
            return Err(Refusal::new("program_config", "one of a norm", format_args!("{other:?}")));
        }
    };
    let LayerNormShardedMultiCoreProgramConfig { compute_with_storage_grid_size: grid, .. } = program;
    let Some(spec) = x.memory_config.shard_spec.as_ref().filter(|_| is_sharded) else {
        return Err(Refusal::new("input_tensor", "columns over cores", x.memory_config.memory_layout));
    };
    equal("compute_with_storage_grid_size", &cores_of(&spec.grid), &(u64::from(grid.x) * u64::from(grid.y)))?;
    equal("block_h", &(spec.shape[0] / TILE), &program.block_h)?;
    equal("block_w", &(spec.shape[1] / TILE), &program.block_w)?;
    let divides = program.subblock_w > 0 && program.block_w.is_multiple_of(program.subblock_w);
    must(divides, "subblock_w", format_args!("a divisor of {}", program.block_w), program.subblock_w)?;
    let most = register_tiles(compute);
    must(
        program.subblock_w <= most,
        "subblock_w",
        format_args!("at most the {most} of registers"),
        program.subblock_w,
    )?;
    let width = x.shape.last().copied().unwrap_or_default();
    let covered = cores_of(&spec.grid) * u64::from(spec.shape[1]);
    equal("columns of all cores", &u64::from(width), &covered)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReduceArguments {
    dims: Vec<u32>,
    memory_config: Placement,
    #[serde(rename = "compute_kernel_config")]
    _compute_kernel_config: ComputeKernelConfig,
}

/// A sum over what an axis of the mesh was gathered along.
pub(super) fn fast_reduce(call: &Call) -> Result<TensorSpec, Refusal> {
    let x = call.input()?;
    let arguments: ReduceArguments = call.arguments()?;
    tiles("input", x)?;
    let [dim] = arguments.dims[..] else { return Err(Refusal::new("dims", "one", arguments.dims.len())) };
    let index = dimension("dims", x, dim as i32)?;
    must(index + 2 < x.shape.len(), "dims", "one of the batch", dim)?;
    equal("devices that were gathered", &call.along(1)?, &x.shape[index])?;
    let mut result = x.clone().placed(arguments.memory_config);
    result.shape[index] = 1;
    // It sums whole tiles, and says so.
    let rows = result.shape.len() - 2;
    result.shape[rows] = result.shape[rows].next_multiple_of(TILE);
    Ok(result)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SumArguments {
    dim: i32,
    keepdim: bool,
    memory_config: Placement,
}

/// A sum over a dimension.
pub(super) fn sum(call: &Call) -> Result<TensorSpec, Refusal> {
    let x = call.input()?;
    let arguments: SumArguments = call.arguments()?;
    let index = dimension("dim", x, arguments.dim)?;
    must(arguments.keepdim, "keepdim", true, false)?;
    must(index == 0, "dim", "0, the chosen experts", arguments.dim)?;
    let mut result = x.clone().placed(arguments.memory_config);
    result.shape[index] = 1;
    Ok(result)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ElementArguments {
    memory_config: Placement,
    #[serde(default)]
    input_tensor_a_activations: Vec<UnaryWithParam>,
    #[serde(default)]
    input_tensor_b: Option<f32>,
}

/// A product or sum by element; the second factor may be one number, or repeat along sides of 1.
pub(super) fn elementwise(call: &Call) -> Result<TensorSpec, Refusal> {
    let arguments: ElementArguments = call.arguments()?;
    let known = |activation: &UnaryWithParam| *activation == UnaryWithParam::Plain("SILU".to_owned());
    let all_known = arguments.input_tensor_a_activations.iter().all(known);
    must(all_known, "input_tensor_a_activations", "SILU", "another")?;
    let ([first, others @ ..], []) = (&call.inputs[..], &call.weights[..]) else {
        return Err(Refusal::new("inputs", "one or two", call.inputs.len()));
    };
    match (others, arguments.input_tensor_b) {
        ([], Some(number)) => {
            must(number.is_finite() && number > 0.0, "input_tensor_b", "a number above 0", number)?;
        }
        ([second], None) => {
            tiles("input_tensor_b", second)?;
            let broadcasts = first.shape.len() == second.shape.len()
                && first.shape.iter().zip(&second.shape).all(|(a, b)| a == b || *b == 1);
            let shapes = format!("{:?} and {:?}", first.shape, second.shape);
            must(broadcasts, "input_tensor_b", "the first one's sides, or 1", shapes)?;
            let sharded = |tensor: &TensorSpec| tensor.memory_config.shard_spec.clone();
            if sharded(first).is_some() && sharded(second).is_some() {
                equal("shards of input_tensor_b", &sharded(first), &sharded(second))?;
            }
        }
        _ => return Err(Refusal::new("input_tensor_b", "a tensor or a number", others.len())),
    }
    must(first.layout == Layout::Tile, "input_tensor_a", "tiles", first.layout)?;
    Ok(first.clone().placed(placed(&arguments.memory_config, first)))
}
