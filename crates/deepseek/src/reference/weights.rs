//! How the reference gets at its weights: by name, in f32, with the expected shape checked.

use dsv3_runtime::{Error, Tensor};
use std::fmt::Display;

/// Where the weights of a checkpoint come from, under their Hugging Face names and in f32; FP8 weights already
/// multiplied by their scales. Any closure of this form is one:
/// `|name: &str| -> Result<(Vec<usize>, Vec<f32>), Error> { ... }`.
pub trait Weights {
    /// The shape and the values, in row-major order, of a tensor.
    ///
    /// # Errors
    /// If there is no tensor of this name, or it cannot be read.
    fn tensor(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>), Error>;
}

impl<F: Fn(&str) -> Result<(Vec<usize>, Vec<f32>), Error>> Weights for F {
    fn tensor(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>), Error> {
        self(name)
    }
}

/// The weights under a prefix: those of one module.
#[derive(Clone)]
pub struct Scope<'a> {
    weights: &'a dyn Weights,
    prefix: String,
}

impl<'a> Scope<'a> {
    /// All weights of a checkpoint.
    pub fn root(weights: &'a dyn Weights) -> Self {
        Self { weights, prefix: String::new() }
    }

    /// The weights of a part, as in `enter("self_attn")` or `enter("model.layers.0")`.
    pub fn enter(&self, part: impl Display) -> Self {
        Self { weights: self.weights, prefix: format!("{}{part}.", self.prefix) }
    }

    /// A matrix `[rows, cols]`.
    ///
    /// # Errors
    /// If it is missing, unreadable, or of another shape.
    pub fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Tensor, Error> {
        Ok(Tensor::from_vec(rows, cols, self.values(name, &[rows, cols])?))
    }

    /// A vector `[len]`.
    ///
    /// # Errors
    /// As [`Scope::matrix`].
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, Error> {
        self.values(name, &[len])
    }

    fn values(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>, Error> {
        let name = format!("{}{name}", self.prefix);
        let (shape, values) = self.weights.tensor(&name)?;
        if shape != expected || values.len() != expected.iter().product::<usize>() {
            let message =
                format!("expected the shape {expected:?}, got {shape:?} with {} values", values.len());
            return Err(Error::Tensor { name, message });
        }
        Ok(values)
    }
}
