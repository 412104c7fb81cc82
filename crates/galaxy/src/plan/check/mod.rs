//! This project's own rules for operations: what each must be given, and what it leaves.
//!
//! TT-NN accepts what it does not look at. These rules are stricter, and know nothing of the choices of a plan, only the
//! constants of the hardware and the arithmetic of tiles and shards that the planner uses too; the model's sizes they derive
//! from config.json themselves ([`ModelRules`]). They read a list of operations, follow the tensors through it, and refuse what does not fit.

mod arguments;
mod attention;
mod collectives;
mod data;
mod experts;
mod memory;
mod model;
mod norms;
mod products;

use super::{
    operations::{Operand, Operation, OperationList, Output},
    request::Fabric,
    tensor::TensorSpec,
};
use arguments::Call;
use std::{collections::HashMap, fmt::Display};

pub use memory::{OperationMemory, l1_bytes};
pub use model::ModelRules;

/// Why an operation is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: expected {expected}, got {got}")]
pub struct Refusal {
    /// The argument, or what of it.
    pub what: String,
    /// What it must be.
    pub expected: String,
    /// What it is.
    pub got: String,
}

impl Refusal {
    fn new(what: &str, expected: impl Display, got: impl Display) -> Self {
        Self { what: what.to_owned(), expected: expected.to_string(), got: got.to_string() }
    }
}

/// Refuses what is not so.
fn must(is_so: bool, what: &str, expected: impl Display, got: impl Display) -> Result<(), Refusal> {
    if is_so { Ok(()) } else { Err(Refusal::new(what, expected, got)) }
}

/// Refuses what is not equal.
fn equal<T: PartialEq + std::fmt::Debug>(what: &str, expected: &T, got: &T) -> Result<(), Refusal> {
    must(expected == got, what, format_args!("{expected:?}"), format_args!("{got:?}"))
}

/// The devices that operations run on.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    /// Rows and columns.
    pub mesh: [u32; 2],
    /// How they are connected.
    pub fabric: Fabric,
}

/// Follows tensors through operations, one after the other.
pub struct Checker {
    device: Device,
    model: Option<ModelRules>,
    outputs: HashMap<String, Vec<TensorSpec>>,
    memory: Vec<OperationMemory>,
}

impl Checker {
    /// Before the first operation. With the model's rules, weights are held to its dimensions.
    pub fn new(device: Device, model: Option<ModelRules>) -> Self {
        Self { device, model, outputs: HashMap::new(), memory: Vec::new() }
    }

    /// What the operations need of a core's memory by this project's own count, in their order.
    pub fn memory(&self) -> &[OperationMemory] {
        &self.memory
    }

    /// Checks the next operation; what it leaves.
    ///
    /// # Errors
    /// What of it is not as it must be.
    pub fn outputs(&mut self, operation: &Operation) -> Result<Vec<TensorSpec>, Refusal> {
        must(
            !self.outputs.contains_key(&operation.name),
            "name",
            "one that no other operation has",
            &operation.name,
        )?;
        let call = self.call(operation)?;
        for (index, tensor) in call.tensors().enumerate() {
            memory::check_placement(&format!("tensor {index}"), tensor)?;
        }
        if let Some(model) = &self.model {
            model.check(&operation.name, &call)?;
        }
        let outputs = dispatch(&call)?;
        let causes = call.given(&[&SHAPE_ARGUMENTS[..], &["memory_config", "output_memory_config"]].concat());
        for (index, tensor) in outputs.iter().enumerate() {
            memory::check_placement(&format!("output {index}{causes}"), tensor)?;
        }
        let memory = memory::of_operation(&operation.name, &call, &outputs)?;
        self.memory.push(memory);
        self.outputs.insert(operation.name.clone(), outputs.clone());
        Ok(outputs)
    }

    fn call(&self, operation: &Operation) -> Result<Call, Refusal> {
        let mut call = Call::new(&operation.op, operation.config.clone(), self.device);
        for operand in &operation.inputs {
            call.inputs.extend(self.resolve(operand)?);
        }
        for operand in &operation.weights {
            call.weights.extend(self.resolve(operand)?);
        }
        Ok(call)
    }

    fn resolve(&self, operand: &Operand) -> Result<Vec<TensorSpec>, Refusal> {
        let source = match operand {
            Operand::New(tensor) => return Ok(vec![tensor.spec.clone()]),
            Operand::From(source) => source,
        };
        let outputs = self.outputs.get(&source.from);
        let outputs = outputs.ok_or_else(|| Refusal::new("from", "an earlier operation", &source.from))?;
        let index = match source.output {
            Some(Output::All(_)) => return Ok(outputs.clone()),
            Some(Output::One(index)) => index as usize,
            None => 0,
        };
        let output = outputs.get(index);
        let expected = format!("less than its {} outputs", outputs.len());
        output.map(|output| vec![output.clone()]).ok_or_else(|| Refusal::new("output", expected, index))
    }
}

/// Checks a list of operations, also against what it says of their outputs.
///
/// # Errors
/// The name of the first operation that is not as it must be, and what of it.
pub fn verify(
    list: &OperationList,
    device: Device,
    model: Option<ModelRules>,
) -> Result<Vec<OperationMemory>, (String, Refusal)> {
    let mut checker = Checker::new(device, model);
    for operation in &list.operations {
        let named = |refusal| (operation.name.clone(), refusal);
        let outputs = checker.outputs(operation).map_err(named)?;
        expected(operation, &outputs).map_err(named)?;
    }
    Ok(checker.memory)
}

/// Refuses what a list says of an operation's outputs where they are something else.
fn expected(operation: &Operation, outputs: &[TensorSpec]) -> Result<(), Refusal> {
    equal("outputs", &operation.expect.len(), &outputs.len())?;
    let causes = arguments::given(&operation.config, &SHAPE_ARGUMENTS);
    for (index, (expected, got)) in operation.expect.iter().zip(outputs).enumerate() {
        let what = |field: &str| format!("{field} of output {index}");
        equal(&format!("{}{causes}", what("shape")), &expected.shape, &got.shape)?;
        equal(&what("dtype"), &expected.dtype, &got.dtype)?;
        equal(&what("layout"), &expected.layout, &got.layout)?;
        equal(&what("memory_config"), &expected.memory_config, &got.memory_config)?;
    }
    Ok(())
}

/// Arguments from which an output's shape follows, beside the inputs.
const SHAPE_ARGUMENTS: [&str; 13] = [
    "cluster_axis",
    "dim",
    "dim1",
    "dim2",
    "dims",
    "in_dim",
    "out_dim",
    "padding",
    "repeat_dims",
    "shape",
    "slice_start",
    "slice_end",
    "split_size",
];

/// What an operation leaves, by its operator's rules.
fn dispatch(call: &Call) -> Result<Vec<TensorSpec>, Refusal> {
    let one = |output: Result<TensorSpec, Refusal>| output.map(|output| vec![output]);
    match call.op.as_str() {
        "linear" => one(products::linear(call)),
        "fast_reduce_nc" => one(norms::fast_reduce(call)),
        "sum" => one(norms::sum(call)),
        "rms_norm" => one(norms::rms_norm(call)),
        "rms_norm_pre_all_gather" => one(norms::pre_all_gather(call)),
        "rms_norm_post_all_gather" => one(norms::post_all_gather(call)),
        "mul" | "add" => one(norms::elementwise(call)),
        "all_gather_async" => one(collectives::all_gather(call)),
        "reduce_scatter_minimal_async" => one(collectives::reduce_scatter(call)),
        "all_to_all" => one(collectives::all_to_all(call)),
        "all_reduce" => one(collectives::all_reduce(call)),
        "mesh_partition" => one(collectives::mesh_partition(call)),
        "rotary_embedding_llama" => one(attention::rotary(call)),
        "paged_update_cache" => one(attention::update_cache(call)),
        "paged_fill_cache" => one(attention::fill_cache(call)),
        "flash_mla_decode" => one(attention::flash_decode(call)),
        "flash_mla_prefill" => one(attention::flash_prefill(call)),
        "chunked_flash_mla_prefill" => one(attention::chunked_flash_prefill(call)),
        "deepseek_moe_gate" => experts::gate(call),
        "all_to_all_dispatch" => experts::dispatch(call),
        "all_to_all_combine" => one(experts::combine(call)),
        "all_to_all_dispatch_metadata" => experts::dispatch_metadata(call),
        "moe_compute" => experts::compute(call),
        "deepseek_moe_post_combine_tilize" => one(experts::tilize(call)),
        "deepseek_moe_fast_reduce_nc" => experts::fast_reduce(call),
        "deepseek_moe_reduce_scatter" => one(experts::reduce_scatter(call)),
        "embedding" => one(data::embedding(call)),
        "typecast" => one(data::typecast(call)),
        "to_memory_config" => one(data::to_memory_config(call)),
        "to_layout" => one(data::to_layout(call)),
        "tilize_with_zero_padding" => one(data::tilize(call)),
        "untilize" => one(data::untilize(call)),
        "slice" => one(data::slice(call)),
        "concat" => one(data::concat(call)),
        "pad" => one(data::pad(call)),
        "repeat" => one(data::repeat(call)),
        "reshape" | "view" => one(data::reshape(call)),
        "permute" => one(data::permute(call)),
        "transpose" => one(data::transpose(call)),
        other => Err(Refusal::new("op", "an operation that this project's modules issue", other)),
    }
}
