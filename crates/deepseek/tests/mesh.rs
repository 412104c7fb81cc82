//! Every module on meshes of several devices, in both modes, against the reference; the whole model against one device.

mod support;

use dsv3_deepseek::{
    Embedding, HfConfig, LmHead, Mla, Mlp, MlpDecoderBlock, Model, Moe, MoeDecoderBlock, Mtp, MtpInput,
    RmsNorm, SharedExpert,
    reference::{self, Scope},
};
use dsv3_mesh::{Axis, ExpertSharding, Layout, MeshShape};
use dsv3_runtime::{DecodeStep, LogitRows, Module, PrefillStep, Prefix, SavedWeight, Tensor, TokenId};
use proptest::prelude::*;
use serde::{Serialize, de::DeserializeOwned};
use support::{
    assert_close, block_sums, concat_rows, f32_tolerance,
    mesh::{Place, Ranks},
    mla_sums, mlp_sums, moe_sums,
    shapes::{Subject, config, noise, subjects, text},
    stages::Stages,
};

const TOKENS: usize = 19;

/// The layouts that all modules run on, where their sizes divide.
fn layouts() -> Vec<Layout> {
    let tensor =
        ["1x1", "1x2", "2x1", "2x2", "2x4"].map(|mesh| Layout::from(mesh.parse::<MeshShape>().unwrap()));
    let expert = tensor[1..].iter().map(|&layout| Layout { experts: ExpertSharding::Expert, ..layout });
    tensor.iter().copied().chain(expert.collect::<Vec<_>>()).collect()
}

/// A module at a place in a model, on a mesh.
struct Part<'a> {
    subject: &'a Subject,
    layout: Layout,
    at: String,
    sums: Vec<usize>,
}

impl Part<'_> {
    /// The module on all ranks; none where it does not divide, which must be said by name.
    fn ranks<M: Module<Hf = HfConfig>>(&self) -> Option<Ranks<M>>
    where
        M::Weights<SavedWeight>: Serialize + DeserializeOwned,
        Stages<M>: Send + Sync,
    {
        let at = if self.at.is_empty() { Prefix::root() } else { Prefix::root().enter(&self.at) };
        match Ranks::new(self.layout, &self.subject.checkpoint, &self.subject.hf, &at) {
            Ok(ranks) => Some(ranks),
            Err(error) => {
                assert!(error.to_string().contains("do not divide over"), "{error}");
                None
            }
        }
    }

    fn scope(&self) -> Scope<'_> {
        let root = Scope::root(&self.subject.weights);
        if self.at.is_empty() { root } else { root.enter(&self.at) }
    }

    fn close(&self, mode: &str, got: &Tensor, expected: &Tensor) {
        let tolerance = f32_tolerance(self.sums.iter().copied());
        let name = format!("{} {} {mode} on {}", self.subject.name, self.at, self.layout);
        assert_close(&name, got, expected, tolerance);
    }

    /// Runs a module whose output has the features of the device, on what `input` makes of the rows of x.
    fn check<M>(&self, x: &Tensor, expected: &Tensor, run: impl Fn(&Tensor) -> M::Input<'_> + Sync)
    where
        M: Module<Hf = HfConfig, Output = Tensor>,
        M::Weights<SavedWeight>: Serialize + DeserializeOwned,
        Stages<M>: Send + Sync,
    {
        let Some(ranks) = self.ranks::<M>() else { return };
        for chunk in [TOKENS, 5] {
            let outputs = ranks.each(|stages, place| prefill(stages, place, x, chunk, &run));
            for (start, parts) in chunks_of(&outputs) {
                let rows = start..(start + chunk).min(TOKENS);
                self.close("prefill", &ranks.join(&parts), &rows_of(expected, rows));
            }
        }
        // A user on every row, all with the same tokens.
        let outputs = ranks.each(|stages, place| {
            let mut state = stages.state();
            let outputs = (0..TOKENS).map(|position| {
                stages.decode(run(&place.features(x, position..position + 1)), position, &mut state)
            });
            outputs.collect::<Vec<_>>()
        });
        for position in 0..TOKENS {
            let parts: Vec<_> = outputs.iter().map(|outputs| outputs[position].clone()).collect();
            let joined = ranks.join(&parts);
            for row in 0..joined.rows() {
                let expected = rows_of(expected, position..position + 1);
                self.close("decode", &rows_of(&joined, row..row + 1), &expected);
            }
        }
    }
}

/// A sequence that the last row caches, in chunks: what the rank's row gives of each.
fn prefill<M>(
    stages: &Stages<M>,
    place: Place,
    x: &Tensor,
    chunk: usize,
    run: &impl Fn(&Tensor) -> M::Input<'_>,
) -> Vec<(usize, Tensor)>
where
    M: Module<Hf = HfConfig, Output = Tensor>,
    M::Weights<SavedWeight>: Serialize + DeserializeOwned,
{
    let mut state = stages.state();
    let chunks = (0..TOKENS).step_by(chunk).map(|start| {
        let tokens = chunk.min(TOKENS - start);
        let step = stages.prefill_step(start).on_row(place.rows - 1);
        let (own, step) = step.of_row(tokens, place.rows, place.row);
        let x = place.features(x, start + own.start..start + own.end);
        (start, M::forward_prefill(run(&x), &step, stages.run.prefill(&mut state)).unwrap())
    });
    chunks.collect()
}

/// By chunk, its start and what all ranks gave.
fn chunks_of(outputs: &[Vec<(usize, Tensor)>]) -> Vec<(usize, Vec<Tensor>)> {
    let chunks = 0..outputs[0].len();
    let parts = |chunk: usize| outputs.iter().map(|rank| rank[chunk].1.clone()).collect();
    chunks.map(|chunk| (outputs[0][chunk].0, parts(chunk))).collect()
}

fn rows_of(x: &Tensor, rows: std::ops::Range<usize>) -> Tensor {
    concat_rows(rows.map(|row| Tensor::from_vec(1, x.cols(), x.row(row).to_vec())))
}

/// Runs a test on a layer of each kind of each subject, on each layout.
fn for_each_layer(test: impl Fn(&Subject, Layout, usize, &str)) {
    for subject in &subjects() {
        let hf = &subject.hf;
        let layers = [0, hf.first_k_dense_replace].into_iter().filter(|&layer| layer < hf.num_hidden_layers);
        for layer in layers.collect::<std::collections::BTreeSet<_>>() {
            for layout in layouts() {
                test(subject, layout, layer, &format!("model.layers.{layer}"));
            }
        }
    }
}

#[test]
fn embedding_and_lm_head() {
    for subject in &subjects() {
        for layout in layouts() {
            let (hf, tokens) = (&subject.hf, text(&subject.hf, TOKENS));
            let part = Part { subject, layout, at: "model.embed_tokens".to_owned(), sums: vec![1] };
            if let Some(ranks) = part.ranks::<Embedding>() {
                let expected = reference::embedding(hf, &part.scope(), &tokens).unwrap();
                let outputs = ranks.each(|stages, place| {
                    let (own, step) = stages.prefill_step(0).of_row(TOKENS, place.rows, place.row);
                    Embedding::forward_prefill(&tokens[own], &step, stages.run.prefill(&mut ())).unwrap()
                });
                part.close("prefill", &ranks.join(&outputs), &expected);
            }
            let part = Part { subject, layout, at: String::new(), sums: vec![hf.hidden_size] };
            if let Some(ranks) = part.ranks::<LmHead>() {
                let x = noise(TOKENS, hf.hidden_size, 10);
                let expected = reference::lm_head(hf, &part.scope(), &x).unwrap();
                let outputs =
                    ranks.each(|stages, place| stages.prefill(place.features(&x, 0..TOKENS), 0, &mut ()));
                for output in outputs {
                    part.close("prefill", &output, &expected);
                }
            }
        }
    }
}

#[test]
fn rms_norm() {
    for_each_layer(|subject, layout, _, at| {
        let hf = &subject.hf;
        let at = format!("{at}.input_layernorm");
        let part = Part { subject, layout, at, sums: vec![hf.hidden_size] };
        let x = noise(TOKENS, hf.hidden_size, 1);
        let expected = reference::rms_norm(&part.scope(), hf.rms_norm_eps, &x).unwrap();
        part.check::<RmsNorm>(&x, &expected, |x| x);
    });
}

#[test]
fn mla() {
    for_each_layer(|subject, layout, _, at| {
        let hf = &subject.hf;
        let part = Part { subject, layout, at: format!("{at}.self_attn"), sums: mla_sums(hf, TOKENS) };
        let x = noise(TOKENS, hf.hidden_size, 3);
        let expected = reference::mla(hf, &part.scope(), &x).unwrap();
        part.check::<Mla>(&x, &expected, Tensor::clone);
    });
}

#[test]
fn mlp_and_moe() {
    for_each_layer(|subject, layout, layer, at| {
        let hf = &subject.hf;
        let x = noise(TOKENS, hf.hidden_size, 4);
        let at = format!("{at}.mlp");
        if hf.is_moe(layer) {
            let part = Part { subject, layout, at, sums: moe_sums(hf) };
            let expected = reference::moe(hf.moe(), &part.scope(), &x).unwrap().output;
            part.check::<Moe>(&x, &expected, Tensor::clone);
        } else {
            let sums = mlp_sums(hf.hidden_size, hf.intermediate_size);
            let part = Part { subject, layout, at, sums };
            let expected = reference::mlp(&part.scope(), hf.intermediate_size, &x).unwrap();
            part.check::<Mlp>(&x, &expected, Tensor::clone);
        }
    });
}

/// The shared expert gives each column's part of a sum.
#[test]
fn shared_expert() {
    for_each_layer(|subject, layout, layer, at| {
        let hf = &subject.hf;
        if hf.is_moe(layer) && hf.moe().shared_experts > 0 {
            let sums = mlp_sums(hf.hidden_size, hf.moe().shared_intermediate_size());
            let part = Part { subject, layout, at: format!("{at}.mlp.shared_experts"), sums };
            let Some(ranks) = part.ranks::<SharedExpert>() else { return };
            let x = noise(TOKENS, hf.hidden_size, 5);
            let expected = reference::shared_experts(hf.moe(), &part.scope(), &x).unwrap().unwrap();
            let outputs = ranks.each(|stages, place| stages.prefill(&place.whole(&x, 0..TOKENS), 0, &mut ()));
            for row in outputs.chunks(layout.mesh.size(Axis::Columns)) {
                let mut sum = row[0].clone();
                for part in &row[1..] {
                    sum.values_mut().iter_mut().zip(part.values()).for_each(|(sum, value)| *sum += value);
                }
                part.close("prefill", &sum, &expected);
            }
        }
    });
}

#[test]
fn decoder_block() {
    for_each_layer(|subject, layout, layer, at| {
        let hf = &subject.hf;
        let part = Part { subject, layout, at: at.to_owned(), sums: block_sums(hf, layer, TOKENS) };
        let x = noise(TOKENS, hf.hidden_size, 9);
        let expected = reference::decoder_block(hf, &part.scope(), layer, &x).unwrap().output;
        if hf.is_moe(layer) {
            part.check::<MoeDecoderBlock>(&x, &expected, Tensor::clone);
        } else {
            part.check::<MlpDecoderBlock>(&x, &expected, Tensor::clone);
        }
    });
}

#[test]
fn mtp() {
    for subject in &subjects() {
        let hf = &subject.hf;
        for layout in layouts().into_iter().filter(|_| hf.mtp_layers == 1) {
            let sums = [block_sums(hf, hf.num_hidden_layers, TOKENS), vec![4 * hf.hidden_size]].concat();
            let part = Part { subject, layout, at: String::new(), sums };
            let Some(ranks) = part.ranks::<Mtp>() else { continue };
            let (tokens, hidden) = (text(hf, TOKENS), noise(TOKENS, hf.hidden_size, 11));
            let expected = reference::mtp(hf, &part.scope(), &tokens, &hidden).unwrap().logits;
            let outputs = ranks.each(|stages, place| {
                let step = stages.prefill_step(0).on_row(place.rows - 1);
                let (own, _) = step.of_row(TOKENS, place.rows, place.row);
                let hidden = place.features(&hidden, own);
                let input = MtpInput { tokens: &tokens, hidden: &hidden };
                Mtp::forward_prefill(input, &step, stages.run.prefill(&mut stages.state())).unwrap().logits
            });
            for output in outputs {
                part.close("mtp prefill", &output, &expected);
            }
            // One user, on the last row: the others have nobody.
            let outputs = ranks.each(|stages, place| {
                let mut state = stages.state();
                let pages = [stages.prefill_step(0).pages];
                let outputs = (0..TOKENS).map(|position| {
                    let own = if place.row + 1 == place.rows { position..position + 1 } else { 0..0 };
                    let hidden = place.features(&hidden, own);
                    let input = MtpInput { tokens: &tokens[position..=position], hidden: &hidden };
                    let (positions, rows) = ([position], [place.rows - 1]);
                    let step = DecodeStep::new(&positions, &pages).on_rows(&rows);
                    Mtp::forward_decode(input, &step, stages.run.decode(&mut state)).unwrap().logits
                });
                concat_rows(outputs)
            });
            for output in outputs {
                part.close("mtp decode", &output, &expected);
            }
        }
    }
}

/// Three users on the rows of a mesh, prefilled in chunks and decoded together.
fn users_of(stages: &Stages<Model>, place: Place, tokens: &[Vec<TokenId>], next: &[TokenId]) -> Tensor {
    let mut state = stages.state();
    let pages = stages.prefill_step(0).pages;
    let each = pages.len() / tokens.len();
    let table = |user: usize| &pages[user * each..(user + 1) * each];
    let rows: Vec<_> = (0..tokens.len()).map(|user| (user + 1) % place.rows).collect();
    let mut logits = Vec::new();
    for (user, tokens) in tokens.iter().enumerate() {
        for (index, chunk) in tokens.chunks(5).enumerate() {
            let is_last = (index + 1) * 5 >= tokens.len();
            let asked = if is_last { LogitRows::Last } else { LogitRows::None };
            let step = PrefillStep::new(index * 5, table(user), asked).on_row(rows[user]);
            let output = Model::forward_prefill(chunk, &step, stages.run.prefill(&mut state)).unwrap();
            assert_eq!(output.logits.rows(), usize::from(is_last));
            if is_last {
                logits.push(output.logits);
            }
        }
    }
    let positions: Vec<_> = tokens.iter().map(Vec::len).collect();
    let tables: Vec<_> = (0..tokens.len()).map(table).collect();
    let step = DecodeStep::new(&positions, &tables).on_rows(&rows);
    logits.push(Model::forward_decode(next, &step, stages.run.decode(&mut state)).unwrap().logits);
    concat_rows(logits.into_iter())
}

/// Users of a model on a mesh, against the same on one device.
fn check_users(subject: &Subject, layouts: &[Layout]) -> usize {
    const RELATIVE: f64 = 1e-5;
    let hf = &subject.hf;
    let tokens = [13, 2, 8].map(|length| text(hf, length)).to_vec();
    let next = text(hf, 3);
    let run = |layout| {
        let part = Part { subject, layout, at: String::new(), sums: Vec::new() };
        let ranks = part.ranks::<Model>()?;
        Some(ranks.each(|stages, place| users_of(stages, place, &tokens, &next)))
    };
    let expected = run(Layout::SINGLE).expect("one device takes every model").remove(0);
    let outputs = layouts.iter().filter_map(|&layout| Some((layout, run(layout)?)));
    outputs
        .map(|(layout, outputs)| {
            for output in outputs {
                assert_close(&format!("{} on {layout}", subject.name), &output, &expected, RELATIVE);
            }
        })
        .count()
}

#[test]
fn the_whole_model_gives_the_logits_of_one_device() {
    for subject in &subjects() {
        let layouts = layouts();
        let count = check_users(subject, &layouts);
        // The embedded model divides over all of them.
        assert!(count == layouts.len() || subject.name != "tiny", "{count} layouts");
    }
}

fn any_config() -> impl Strategy<Value = serde_json::Value> {
    let sizes = (1_usize..5, 1_usize..13, 1_usize..9, 1_usize..9, 1_usize..13);
    let choices = (any::<bool>(), any::<bool>(), 1_usize..4, 0_usize..3, 0_usize..3);
    (sizes, choices).prop_map(|((heads, rank, hidden, intermediate, vocab), choices)| {
        let (has_query_rank, has_bias, groups, shared, dense) = choices;
        serde_json::json!({
            "hidden_size": 4 * hidden, "num_attention_heads": heads, "kv_lora_rank": 2 * rank,
            "q_lora_rank": has_query_rank.then_some(2 * rank), "attention_bias": has_bias,
            "intermediate_size": 4 * intermediate, "moe_intermediate_size": 2 * intermediate,
            "vocab_size": 4 * vocab, "n_routed_experts": 4 * groups, "n_group": groups,
            "topk_group": groups.div_ceil(2), "n_shared_experts": shared, "first_k_dense_replace": dense,
            "num_nextn_predict_layers": 0,
        })
    })
}

fn any_layout() -> impl Strategy<Value = Layout> {
    (1_usize..4, 1_usize..5, any::<bool>()).prop_map(|(rows, columns, by_expert)| {
        let mesh: MeshShape = format!("{rows}x{columns}").parse().unwrap();
        let experts = if by_expert { ExpertSharding::Expert } else { ExpertSharding::Tensor };
        Layout { mesh, experts }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever the model and the mesh: it runs right, or is refused by name.
    #[test]
    fn any_model_on_any_mesh_runs_right_or_is_refused(
        changes in any_config(),
        layout in any_layout(),
        seed in any::<u64>(),
    ) {
        let subject = Subject::random(changes.to_string(), config(&changes), seed);
        check_users(&subject, &[layout]);
    }
}
