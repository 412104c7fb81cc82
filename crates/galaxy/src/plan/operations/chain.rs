//! Operations that are put down one after the other. Each is checked as it is put down, and what it leaves is what the next
//! one takes.

use super::list::{AllOutputs, NewTensor, Operand, Operation, Output, Source};
use crate::plan::{
    PlanError,
    check::{Checker, Refusal},
    operators::{FromWeightConfig, Operator, SliceConfig},
    tensor::TensorSpec,
};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// A tensor in a chain: what it is, and where it comes from.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// What it is.
    pub spec: TensorSpec,
    operand: Operand,
}

impl Tensor {
    /// One that was there before.
    pub fn new(spec: TensorSpec) -> Self {
        Self { operand: Operand::New(NewTensor { spec: spec.clone(), arg: None }), spec }
    }

    /// One that was there before, for an argument of this name.
    pub fn named(spec: TensorSpec, arg: &str) -> Self {
        Self { operand: Operand::New(NewTensor { spec: spec.clone(), arg: Some(arg.to_owned()) }), spec }
    }

    /// A weight.
    pub fn weight(weight: &FromWeightConfig) -> Self {
        Self::new(weight.into())
    }

    /// Its shape.
    pub fn shape(&self) -> &[u32] {
        &self.spec.shape
    }
}

/// Operations, each checked.
pub struct Chain {
    checker: Checker,
    scope: Vec<String>,
    operations: Vec<Operation>,
}

impl Chain {
    /// None yet.
    pub fn new(checker: Checker) -> Self {
        Self { checker, scope: Vec::new(), operations: Vec::new() }
    }

    /// The operations, and what was found of them.
    pub fn finish(self) -> (Vec<Operation>, Checker) {
        (self.operations, self.checker)
    }

    /// Puts down a module's operations: their names begin with the module's.
    ///
    /// # Errors
    /// Those of the module.
    pub fn within<T>(
        &mut self,
        module: &str,
        operations: impl FnOnce(&mut Self) -> Result<T, PlanError>,
    ) -> Result<T, PlanError> {
        self.scope.push(module.to_owned());
        let result = operations(self);
        self.scope.pop();
        result
    }

    /// An operation with a config, its weights and its arguments.
    pub fn step<O: Operator>(&mut self, name: &str, config: &O, inputs: &[&Tensor]) -> Step<'_> {
        let mut step = self.plain(name, O::OPERATION, inputs);
        step.operation.weights =
            config.weights().into_iter().map(|weight| Tensor::weight(weight).operand).collect();
        step.operation.config = arguments(config);
        step
    }

    /// An operation that has no config: its arguments follow from the shapes.
    pub fn plain(&mut self, name: &str, op: &str, inputs: &[&Tensor]) -> Step<'_> {
        let mut full = self.scope.join(".");
        if !full.is_empty() {
            full.push('.');
        }
        let operation = Operation {
            name: full + name,
            op: op.to_owned(),
            inputs: inputs.iter().map(|tensor| tensor.operand.clone()).collect(),
            weights: Vec::new(),
            config: Map::new(),
            expect: Vec::new(),
            note: None,
        };
        Step { chain: self, operation }
    }

    /// A part of a tensor.
    ///
    /// # Errors
    /// If the operation is refused.
    pub fn slice(
        &mut self,
        name: &str,
        config: &impl Operator,
        x: &Tensor,
        [start, end]: [&[u32]; 2],
    ) -> Result<Tensor, PlanError> {
        self.step(name, config, &[x]).with("slice_start", start).with("slice_end", end).put()
    }

    /// Filled up with zeros to so many rows, where it has fewer.
    ///
    /// # Errors
    /// If the operation is refused.
    pub fn pad_rows(&mut self, name: &str, x: &Tensor, rows: u32) -> Result<Tensor, PlanError> {
        let has = x.shape()[2];
        if has == rows {
            return Ok(x.clone());
        }
        let step = self.plain(name, "pad", &[x]).with("padding", [[0, 0], [0, 0], [0, rows - has], [0, 0]]);
        step.with("value", 0.0).with("memory_config", json!(x.spec.memory_config)).put()
    }

    /// Without the rows that it was filled up with, where it was.
    ///
    /// # Errors
    /// If the operation is refused.
    pub fn first_rows(&mut self, name: &str, x: &Tensor, rows: u32) -> Result<Tensor, PlanError> {
        let &[batch, heads, has, width] = x.shape() else { unreachable!("four dimensions") };
        if has == rows {
            return Ok(x.clone());
        }
        let slice = SliceConfig { memory_config: x.spec.memory_config.clone() };
        self.slice(name, &slice, x, [&[0, 0, 0, 0], &[batch, heads, rows, width]])
    }

    /// The same elements in another shape.
    ///
    /// # Errors
    /// If the operation is refused.
    pub fn reshape(&mut self, name: &str, op: &str, x: &Tensor, shape: &[u32]) -> Result<Tensor, PlanError> {
        self.plain(name, op, &[x]).with("shape", shape).put()
    }
}

/// An operation that is being put down.
pub struct Step<'a> {
    chain: &'a mut Chain,
    operation: Operation,
}

impl Step<'_> {
    /// With one more argument.
    #[must_use]
    pub fn with(mut self, argument: &str, value: impl Serialize) -> Self {
        self.operation.config.insert(argument.to_owned(), json!(value));
        self
    }

    /// With one more weight, or a tensor that is the model's state.
    #[must_use]
    pub fn weight(mut self, tensor: &Tensor) -> Self {
        self.operation.weights.push(tensor.operand.clone());
        self
    }

    /// With something to be known.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.operation.note = Some(note.into());
        self
    }

    /// Puts it down, and returns what it leaves.
    ///
    /// # Errors
    /// If the operation is refused.
    pub fn put(self) -> Result<Tensor, PlanError> {
        self.put_all().map(|mut outputs| outputs.swap_remove(0))
    }

    /// Puts it down, and returns all that it leaves.
    ///
    /// # Errors
    /// If the operation is refused.
    pub fn put_all(self) -> Result<Vec<Tensor>, PlanError> {
        let Self { chain, mut operation } = self;
        let name = operation.name.clone();
        let refused = |refusal: Refusal| PlanError::Refused { operation: name.clone(), refusal };
        let outputs = chain.checker.outputs(&operation).map_err(refused)?;
        operation.expect.clone_from(&outputs);
        chain.operations.push(operation);
        let tensor = |(index, spec): (usize, TensorSpec)| Tensor {
            spec,
            operand: Operand::From(Source {
                from: name.clone(),
                output: (index > 0).then_some(Output::One(index as u32)),
            }),
        };
        Ok(outputs.into_iter().enumerate().map(tensor).collect())
    }
}

/// All outputs of an operation as one argument.
pub(super) fn all_of(outputs: &[Tensor]) -> Tensor {
    let mut first = outputs[0].clone();
    if let Operand::From(source) = &mut first.operand {
        source.output = Some(Output::All(AllOutputs::All));
    }
    first
}

/// A config's arguments: all of its fields but the weights and the mesh, which are found when the model is loaded.
fn arguments(config: &impl Operator) -> Map<String, Value> {
    // By way of text, so that a number of 32 bits stays as short as it was written.
    let text = serde_json::to_string(config).expect("a config is data");
    let Ok(Value::Object(mut fields)) = serde_json::from_str(&text) else {
        unreachable!("a config is a structure")
    };
    fields.retain(|name, value| name != "mesh_device" && value.get("mesh_device").is_none());
    fields
}
