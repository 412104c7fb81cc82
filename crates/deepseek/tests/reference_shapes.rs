//! The reference on random weights of shapes that no golden file has, held to what must be true of any of them.

mod support;

use dsv3_deepseek::reference::{Model, Weights};
use dsv3_runtime::{Error, TokenId};
use std::{cell::RefCell, collections::BTreeSet};
use support::{
    random::random_weights,
    shapes::{config, shapes, text},
};

/// No row depends on later tokens, to the last bit.
#[test]
fn attention_is_causal() {
    for hf in shapes() {
        let weights = random_weights(&hf, 1);
        let model = Model::new(&hf, &weights);
        let tokens = text(&hf, 12);
        let whole = model.forward(&tokens).unwrap();
        let part = model.forward(&tokens[..5]).unwrap();
        assert_eq!(part.logits.values(), &whole.logits.values()[..part.logits.values().len()]);
        assert!(whole.logits.values().iter().all(|value| value.is_finite()));
        if hf.mtp_layers == 1 {
            let whole = model.mtp(&tokens, &whole.norm).unwrap();
            let part = model.mtp(&tokens[..5], &part.norm).unwrap();
            assert_eq!(part.logits.values(), &whole.logits.values()[..part.logits.values().len()]);
        }
    }
}

/// The same token at another position, or behind another one, gives other logits; errors in the rotary embedding do
/// not show at position 0.
#[test]
fn positions_and_context_matter() {
    for hf in shapes() {
        let weights = random_weights(&hf, 2);
        let model = Model::new(&hf, &weights);
        let last = |tokens: &[u32]| {
            let tokens: Vec<TokenId> = tokens.iter().copied().map(TokenId).collect();
            let logits = model.forward(&tokens).unwrap().logits;
            logits.row(tokens.len() - 1).to_vec()
        };
        assert_ne!(last(&[1, 2, 3]), last(&[2, 1, 3]));
        assert_ne!(last(&[1, 2, 3]), last(&[1, 4, 3]));
    }
}

/// Forward and MTP read every weight of the checkpoint and no other: none is forgotten.
#[test]
fn every_weight_is_used() {
    for hf in shapes() {
        let weights = random_weights(&hf, 3);
        let read = RefCell::new(BTreeSet::new());
        let recorded = |name: &str| -> Result<(Vec<usize>, Vec<f32>), Error> {
            read.borrow_mut().insert(name.to_owned());
            weights.tensor(name)
        };
        let model = Model::new(&hf, &recorded);
        // Long enough for every expert to be visited once.
        let tokens = text(&hf, 50);
        let trace = model.forward(&tokens).unwrap();
        if hf.mtp_layers == 1 {
            model.mtp(&tokens, &trace.norm).unwrap();
        }
        let expected: BTreeSet<String> = weights.0.keys().cloned().collect();
        assert_eq!(*read.borrow(), expected);
        let count: usize = weights.0.values().map(|(_, values)| values.len()).sum();
        assert_eq!(hf.parameters(), count as u64);
    }
}

#[test]
fn what_is_no_text_is_refused() {
    let hf = config(&serde_json::json!({}));
    let weights = random_weights(&hf, 4);
    let model = Model::new(&hf, &weights);
    let error = model.forward(&[TokenId(1), TokenId(50)]).unwrap_err().to_string();
    assert_eq!(error, "expected a token below 50, got 50");
    let error = model.greedy(&[], 1).unwrap_err().to_string();
    assert_eq!(error, "expected a prompt of one token or more, got none");
    assert_eq!(model.forward(&[]).unwrap().logits.rows(), 0);
}
