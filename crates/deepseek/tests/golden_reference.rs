//! The naive reference against what transformers computes, tensor by tensor, for every checkpoint with a golden file.

mod support;

use dsv3_deepseek::{
    hf::HfConfig,
    reference::{self, BlockTrace, Model, Route, Scope},
};
use dsv3_runtime::{Tensor, TokenId};
use support::{CASES, Golden, assert_close, block_sums, f32_tolerance, mla_sums, mlp_sums, moe_sums};

/// The tolerance of whatever follows a number of layers, their own sums included.
fn after_layers(hf: &HfConfig, layers: usize, tokens: usize) -> f64 {
    f32_tolerance((0..layers).flat_map(|layer| block_sums(hf, layer, tokens)))
}

/// Holds routes against the golden indices and weights: the same experts, and weights of the same size.
fn assert_routes(golden: &Golden, name: &str, routes: &[Route], tolerance: f64) {
    let (indices, weights): (Vec<usize>, Vec<f32>) = routes.iter().flatten().copied().unzip();
    assert_eq!(indices, golden.integers(&format!("{name}.indices")), "{name}.indices");
    let expected = golden.tensor(&format!("{name}.weights"));
    let weights = Tensor::from_vec(expected.rows(), expected.cols(), weights);
    assert_close(&format!("{name}.weights"), &weights, &expected, tolerance);
}

/// Each part alone on transformers' own input: nothing but its own rounding may differ.
#[test]
fn every_part_alone() {
    for case in CASES {
        let (hf, weights, golden) = (case.config(), case.weights(), case.golden());
        for layer in 0..hf.num_hidden_layers {
            let weights = Scope::root(&weights).enter(format_args!("model.layers.{layer}"));
            let name = |part: &str| format!("layers.{layer}.{part}");
            let close = |part: &str, got: &Tensor, sums: Vec<usize>| {
                let message = format!("{} {}", case.name, name(part));
                assert_close(&message, got, &golden.tensor(&name(part)), f32_tolerance(sums));
            };
            let norm = |part: &str, x: &str| {
                reference::rms_norm(&weights.enter(part), hf.rms_norm_eps, &golden.tensor(&name(x))).unwrap()
            };

            close("mla_norm.output", &norm("input_layernorm", "input"), vec![hf.hidden_size]);
            let x = golden.tensor(&name("mla_norm.output"));
            let mla = reference::mla(&hf, &weights.enter("self_attn"), &x).unwrap();
            close("mla.output", &mla, mla_sums(&hf, x.rows()));

            close(
                "mlp_norm.output",
                &norm("post_attention_layernorm", "mlp_norm.input"),
                vec![hf.hidden_size],
            );
            let x = golden.tensor(&name("mlp_norm.output"));
            let weights = weights.enter("mlp");
            let Some(moe) = hf.moe.as_ref().filter(|_| hf.is_moe(layer)) else {
                let mlp = reference::mlp(&weights, hf.intermediate_size, &x).unwrap();
                close("mlp.output", &mlp, mlp_sums(hf.hidden_size, hf.intermediate_size));
                continue;
            };
            let routes = reference::gate(moe, &weights.enter("gate"), &x).unwrap();
            assert_routes(
                &golden,
                &name("gate"),
                &routes,
                f32_tolerance([hf.hidden_size, moe.experts_per_token]),
            );
            let experts = reference::experts(moe, &weights.enter("experts"), &x, &routes).unwrap();
            close("experts.output", &experts, moe_sums(&hf));
            let shared =
                reference::shared_experts(moe, &weights.enter("shared_experts"), &x).unwrap().unwrap();
            close("shared_experts.output", &shared, mlp_sums(hf.hidden_size, moe.shared_intermediate_size()));
            close("mlp.output", &reference::moe(moe, &weights, &x).unwrap().output, moe_sums(&hf));
        }
        let norm = golden.tensor("norm.output");
        let logits = reference::lm_head(&hf, &Scope::root(&weights), &norm).unwrap();
        let message = format!("{} logits", case.name);
        assert_close(&message, &logits, &golden.tensor("logits"), f32_tolerance([hf.hidden_size]));
    }
}

fn assert_block(hf: &HfConfig, golden: &Golden, layer: usize, block: &BlockTrace) {
    let tokens = block.input.rows();
    let tolerance = after_layers(hf, layer + 1, tokens);
    let name = |part: &str| format!("layers.{layer}.{part}");
    let close =
        |part: &str, got: &Tensor| assert_close(&name(part), got, &golden.tensor(&name(part)), tolerance);
    close("input", &block.input);
    close("mla_norm.output", &block.mla_norm);
    close("mla.output", &block.mla);
    close("mlp_norm.input", &block.middle);
    close("mlp_norm.output", &block.mlp_norm);
    close("mlp.output", &block.mlp);
    close("output", &block.output);
    assert_eq!(block.moe.is_some(), hf.is_moe(layer));
    if let Some(moe) = &block.moe {
        assert_routes(golden, &name("gate"), &moe.routes, tolerance);
        close("experts.output", &moe.experts);
        close("shared_experts.output", moe.shared_experts.as_ref().unwrap());
    }
}

/// The model from tokens to logits; the rounding of all layers adds up.
#[test]
fn the_whole_model() {
    for case in CASES {
        let (hf, weights, golden) = (case.config(), case.weights(), case.golden());
        let tokens = golden.tokens("tokens");
        let trace = Model::new(&hf, &weights).forward(&tokens).unwrap();
        assert_eq!(trace.embedding, golden.tensor("embedding.output"), "{}", case.name);
        assert_eq!(trace.layers.len(), hf.num_hidden_layers);
        for (layer, block) in trace.layers.iter().enumerate() {
            assert_block(&hf, &golden, layer, block);
        }
        let layers = (0..hf.num_hidden_layers).flat_map(|layer| block_sums(&hf, layer, tokens.len()));
        let tolerance = f32_tolerance(layers.chain([hf.hidden_size, hf.hidden_size]));
        assert_close("norm.output", &trace.norm, &golden.tensor("norm.output"), tolerance);
        assert_close("logits", &trace.logits, &golden.tensor("logits"), tolerance);
    }
}

/// More tokens than YaRN's original context.
#[test]
fn a_long_text() {
    for case in CASES {
        let (hf, weights, golden) = (case.config(), case.weights(), case.golden());
        if !golden.contains("long.tokens") {
            continue;
        }
        let tokens = golden.tokens("long.tokens");
        let yarn = hf.rope.scaling.as_ref().expect("recorded for models with YaRN");
        assert!(tokens.len() > yarn.original_max_position_embeddings);
        let logits = Model::new(&hf, &weights).forward(&tokens).unwrap().logits;
        let last = Tensor::from_vec(1, logits.cols(), logits.row(tokens.len() - 1).to_vec());
        let layers = (0..hf.num_hidden_layers).flat_map(|layer| block_sums(&hf, layer, tokens.len()));
        let tolerance = f32_tolerance(layers.chain([hf.hidden_size, hf.hidden_size]));
        assert_close("long.logits_last", &last, &golden.tensor("long.logits_last"), tolerance);
    }
}

/// A frequency may be off by two units in the last place (a power and a quotient), cos and sin by one; the first
/// grows with the angle.
#[test]
fn rotary_tables_and_softmax_scale() {
    for case in CASES {
        let (hf, golden) = (case.config(), case.golden());
        let (cos, sin) = (golden.tensor("rope.cos"), golden.tensor("rope.sin"));
        let tables = reference::rope_tables(&hf, cos.rows());
        let frequencies = reference::inverse_frequencies(&hf);
        for (got, expected) in [(&tables.cos, &cos), (&tables.sin, &sin)] {
            assert_eq!((got.rows(), got.cols()), (expected.rows(), expected.cols()));
            for position in 0..expected.rows() {
                for (pair, frequency) in frequencies.iter().enumerate() {
                    let angle = position as f32 * frequency;
                    let tolerance = (2.0 * angle + 1.0) * f32::EPSILON * hf.rope.attention_factor();
                    let difference = (got.row(position)[pair] - expected.row(position)[pair]).abs();
                    assert!(
                        difference <= tolerance,
                        "{}: position {position}, pair {pair}: {difference}",
                        case.name
                    );
                }
            }
        }
        let expected = golden.tensor("softmax_scale").values()[0];
        assert!((hf.softmax_scale() - expected).abs() <= f32::EPSILON * expected, "{}", case.name);
    }
}

/// The MTP layer, on the hidden state before the final norm (`mtp`) and after it (`mtp_normed`).
#[test]
fn multi_token_prediction() {
    for case in CASES {
        let (hf, weights, golden) = (case.config(), case.weights(), case.golden());
        assert_eq!(golden.contains("mtp.output"), hf.mtp_layers == 1, "{}", case.name);
        if hf.mtp_layers == 0 {
            continue;
        }
        let model = Model::new(&hf, &weights);
        let trace = model.forward(&golden.tokens("tokens")).unwrap();
        for (name, hidden) in [("mtp", trace.hidden()), ("mtp_normed", &trace.norm)] {
            let tensor = |part: &str| golden.tensor(&format!("{name}.{part}"));
            let following = golden.tokens(&format!("{name}.input_tokens"));
            let expected_hidden = tensor("hidden");
            let rows = hidden.values()[..following.len() * hf.hidden_size].to_vec();
            let hidden = Tensor::from_vec(following.len(), hf.hidden_size, rows);
            let tolerance = after_layers(&hf, hf.num_hidden_layers, hidden.rows() + 1);
            assert_close("mtp.hidden", &hidden, &expected_hidden, tolerance);

            let got = model.mtp(&following, &expected_hidden).unwrap();
            let projection = [hf.hidden_size, hf.hidden_size, 2 * hf.hidden_size];
            assert_close("mtp.eh_proj", &got.eh_proj, &tensor("eh_proj.output"), f32_tolerance(projection));
            let block = block_sums(&hf, hf.num_hidden_layers, following.len());
            let tolerance = f32_tolerance(projection.into_iter().chain(block).chain([hf.hidden_size; 2]));
            let routes = &got.block.moe.as_ref().expect("the MTP layer has experts").routes;
            assert_routes(&golden, &format!("{name}.gate"), routes, tolerance);
            assert_close("mtp.output", &got.output, &tensor("output"), tolerance);
            assert_close("mtp.logits", &got.logits, &tensor("logits"), tolerance);
        }
    }
}

/// Attention is causal, so one run over prompt and continuation makes the same decisions as a run per token; a few
/// tokens are made the slow way nevertheless.
#[test]
fn greedy_generation() {
    const SLOWLY: usize = 8;
    for case in CASES {
        let (hf, weights, golden) = (case.config(), case.weights(), case.golden());
        let (prompt, expected) = (golden.tokens("greedy.prompt"), golden.tokens("greedy.tokens"));
        assert_eq!(expected.len(), 64);
        let model = Model::new(&hf, &weights);
        assert_eq!(model.greedy(&prompt, SLOWLY).unwrap(), expected[..SLOWLY], "{}", case.name);

        let text = [prompt.as_slice(), &expected[..expected.len() - 1]].concat();
        let logits = model.forward(&text).unwrap().logits;
        let likeliest = |row: usize| {
            let values = logits.row(row).iter().enumerate();
            TokenId(values.max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0 as u32)
        };
        let got: Vec<TokenId> = (prompt.len() - 1..text.len()).map(likeliest).collect();
        assert_eq!(got, expected, "{}", case.name);
    }
}
