//! Why there is no plan.

use super::check::Refusal;

/// A request for which no operator configs can be made.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// An option that makes no sense, by itself or beside the others.
    #[error("{option}: expected {expected}, got {got}")]
    Request {
        /// The option, as the command line has it.
        option: &'static str,
        /// What would have been accepted.
        expected: String,
        /// What was asked for.
        got: String,
    },
    /// A model that upstream's modules do not compute.
    #[error("{field}: the modules on a Galaxy need {expected}, this model has {got}")]
    Model {
        /// The field of config.json.
        field: &'static str,
        /// What they need.
        expected: String,
        /// What the model has.
        got: String,
    },
    /// A dimension that does not divide over the mesh.
    #[error("{what} ({size}) does not divide into {parts} parts of whole {unit} ({by})")]
    Indivisible {
        /// The dimension.
        what: &'static str,
        /// Its size.
        size: usize,
        /// Into how many parts it must divide.
        parts: usize,
        /// What a part must consist of.
        unit: &'static str,
        /// Why.
        by: String,
    },
    /// What a core would need of its memory is more than it has.
    #[error("{what} needs {bytes} bytes of L1 on a core, which has {limit}")]
    L1 {
        /// The operation.
        what: String,
        /// Bytes that it needs at least.
        bytes: u64,
        /// Bytes that there are.
        limit: u64,
    },
    /// What a device would hold is more than its DRAM.
    #[error("{what} needs {bytes} bytes of DRAM on a device, which has {limit}")]
    Dram {
        /// What is held.
        what: String,
        /// Bytes that it needs.
        bytes: u64,
        /// Bytes that there are.
        limit: u64,
    },
    /// A step that this project's own rules refuse.
    #[error("{operation}: {refusal}")]
    Refused {
        /// The operation's name in the list.
        operation: String,
        /// What is wrong with it.
        refusal: Refusal,
    },
}
