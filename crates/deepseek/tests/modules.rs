//! Every module alone, through its three stages, in both modes, against the reference: on every checkpoint with a golden
//! file and on random models of other shapes.

mod support;

use dsv3_deepseek::{
    DecoderBlock, Embedding, Experts, ExpertsInput, FeedForward, HfConfig, LmHead, Mla, Mlp, MlpDecoderBlock,
    Model, Moe, MoeDecoderBlock, MoeGate, Mtp, MtpInput, RmsNorm, Rope, RopeInput, SharedExpert,
    reference::{self, Scope},
};
use dsv3_runtime::{DecodeStep, Module, PageId, PrefillStep, Prefix, SavedWeight, Tensor, ops::Routing};
use serde::{Serialize, de::DeserializeOwned};
use support::{
    assert_close, block_sums, concat_rows, f32_tolerance, mla_sums, mlp_sums, moe_sums,
    shapes::{Subject, noise, subjects, text},
    stages::Stages,
};

const TOKENS: usize = 19;

/// A module at a place in a model, with the lengths of its sums.
struct Part<'a> {
    subject: &'a Subject,
    at: String,
    sums: Vec<usize>,
}

impl Part<'_> {
    fn stages<M: Module<Hf = HfConfig>>(&self) -> Stages<M>
    where
        M::Weights<SavedWeight>: Serialize + DeserializeOwned,
    {
        let at = if self.at.is_empty() { Prefix::root() } else { Prefix::root().enter(&self.at) };
        Stages::new(&self.subject.checkpoint, &self.subject.hf, &at)
    }

    fn scope(&self) -> Scope<'_> {
        let root = Scope::root(&self.subject.weights);
        if self.at.is_empty() { root } else { root.enter(&self.at) }
    }

    fn close(&self, mode: &str, got: &Tensor, expected: &Tensor) {
        let tolerance = f32_tolerance(self.sums.iter().copied());
        assert!(tolerance < 1e-4, "the bound that modules have to keep");
        let Subject { name, .. } = self.subject;
        assert_close(&format!("{name} {} {mode}", self.at), got, expected, tolerance);
    }

    /// Runs a module on all rows at once, in chunks, and row by row.
    fn both_modes<M>(&self, input: &Tensor, expected: &Tensor, run: impl Fn(&Tensor) -> M::Input<'_>)
    where
        M: Module<Hf = HfConfig, Output = Tensor>,
        M::Weights<SavedWeight>: Serialize + DeserializeOwned,
    {
        let stages = self.stages::<M>();
        for chunk in [input.rows(), 5] {
            let mut state = stages.state();
            let outputs = chunks(input, chunk).map(|(start, x)| stages.prefill(run(&x), start, &mut state));
            self.close(&format!("prefill by {chunk}"), &concat_rows(outputs), expected);
        }
        let mut state = stages.state();
        let outputs = chunks(input, 1).map(|(position, x)| stages.decode(run(&x), position, &mut state));
        self.close("decode", &concat_rows(outputs), expected);
    }
}

fn chunks(x: &Tensor, rows: usize) -> impl Iterator<Item = (usize, Tensor)> {
    let cols = x.cols();
    x.values().chunks(rows * cols).enumerate().map(move |(index, values)| {
        (index * rows, Tensor::from_vec(values.len() / cols, cols, values.to_vec()))
    })
}

/// Runs a test on a layer of each kind of each subject.
fn for_each_layer(test: impl Fn(&Subject, usize, &str)) {
    for subject in &subjects() {
        let hf = &subject.hf;
        let first_moe = hf.first_k_dense_replace;
        let layers = [0, first_moe].into_iter().filter(|&layer| layer < hf.num_hidden_layers);
        for layer in layers.collect::<std::collections::BTreeSet<_>>() {
            test(subject, layer, &format!("model.layers.{layer}"));
        }
    }
}

#[test]
fn embedding() {
    for subject in &subjects() {
        let (hf, tokens) = (&subject.hf, text(&subject.hf, TOKENS));
        let part = Part { subject, at: "model.embed_tokens".to_owned(), sums: vec![1] };
        let expected = reference::embedding(hf, &part.scope(), &tokens).unwrap();
        let stages = part.stages::<Embedding>();
        part.close("prefill", &stages.prefill(&tokens, 0, &mut ()), &expected);
        let outputs = tokens.iter().enumerate().map(|(i, token)| stages.decode(&[*token], i, &mut ()));
        part.close("decode", &concat_rows(outputs), &expected);
    }
}

#[test]
fn rms_norm() {
    for_each_layer(|subject, _, at| {
        let hf = &subject.hf;
        for name in ["input_layernorm", "post_attention_layernorm"] {
            let part = Part { subject, at: format!("{at}.{name}"), sums: vec![hf.hidden_size] };
            let x = noise(TOKENS, hf.hidden_size, 1);
            let expected = reference::rms_norm(&part.scope(), hf.rms_norm_eps, &x).unwrap();
            part.both_modes::<RmsNorm>(&x, &expected, |x| x);
        }
    });
}

#[test]
fn rope() {
    for subject in &subjects() {
        let (heads, width, first) = (3, subject.hf.attention.qk_head_dim(), 2);
        let features = subject.hf.attention.qk_rope_head_dim;
        // The angle itself is the f32 of transformers; each rotated value is a sum of two products.
        let part = Part { subject, at: String::new(), sums: vec![2, 2] };
        let x = noise(TOKENS, first + heads * width, 2);
        let positions = subject.hf.max_position_embeddings;
        let tables = reference::rope_tables(&subject.hf, positions);
        let stages = part.stages::<Rope>();
        for start in [0, positions - TOKENS] {
            let mut expected = x.clone();
            for token in 0..TOKENS {
                let (cos, sin) = (tables.cos.row(start + token), tables.sin.row(start + token));
                for head in expected.row_mut(token)[first..].chunks_exact_mut(width) {
                    reference::rotate(&mut head[width - features..], cos, sin);
                }
            }
            let mut got = x.clone();
            stages.prefill(RopeInput { x: &mut got, first, heads }, start, &mut stages.state());
            part.close("rope prefill", &got, &expected);
            let outputs = chunks(&x, 1).map(|(token, mut x)| {
                stages.decode(RopeInput { x: &mut x, first, heads }, start + token, &mut stages.state());
                x
            });
            part.close("rope decode", &concat_rows(outputs), &expected);
        }
    }
}

#[test]
fn mla() {
    for_each_layer(|subject, _, at| {
        let hf = &subject.hf;
        let part = Part { subject, at: format!("{at}.self_attn"), sums: mla_sums(hf, TOKENS) };
        let x = noise(TOKENS, hf.hidden_size, 3);
        let expected = reference::mla(hf, &part.scope(), &x).unwrap();
        part.both_modes::<Mla>(&x, &expected, Tensor::clone);
    });
}

#[test]
fn mlp() {
    for_each_layer(|subject, layer, at| {
        let hf = &subject.hf;
        if !hf.is_moe(layer) {
            let sums = mlp_sums(hf.hidden_size, hf.intermediate_size);
            let part = Part { subject, at: format!("{at}.mlp"), sums };
            let x = noise(TOKENS, hf.hidden_size, 4);
            let expected = reference::mlp(&part.scope(), hf.intermediate_size, &x).unwrap();
            part.both_modes::<Mlp>(&x, &expected, Tensor::clone);
        }
    });
}

#[test]
fn shared_expert() {
    for_each_layer(|subject, layer, at| {
        let hf = &subject.hf;
        if hf.is_moe(layer) && hf.moe().shared_experts > 0 {
            let sums = mlp_sums(hf.hidden_size, hf.moe().shared_intermediate_size());
            let part = Part { subject, at: format!("{at}.mlp.shared_experts"), sums };
            let x = noise(TOKENS, hf.hidden_size, 5);
            let expected = reference::shared_experts(hf.moe(), &part.scope(), &x).unwrap().unwrap();
            part.both_modes::<SharedExpert>(&x, &expected, |x| x);
        }
    });
}

#[test]
fn moe_gate() {
    for_each_layer(|subject, layer, at| {
        let hf = &subject.hf;
        if hf.is_moe(layer) {
            let part = Part { subject, at: format!("{at}.mlp.gate"), sums: vec![hf.hidden_size] };
            let x = noise(TOKENS, hf.hidden_size, 6);
            let expected = reference::gate(hf.moe(), &part.scope(), &x).unwrap();
            let stages = part.stages::<MoeGate>();
            assert_routes(&part, "prefill", &stages.prefill(&x, 0, &mut ()), &expected);
            for (position, x) in chunks(&x, 1) {
                let routing = stages.decode(&x, position, &mut ());
                assert_routes(&part, "decode", &routing, &expected[position..=position]);
            }
        }
    });
}

fn assert_routes(part: &Part<'_>, mode: &str, got: &Routing, expected: &[reference::Route]) {
    assert_eq!(got.tokens(), expected.len());
    for (token, expected) in expected.iter().enumerate() {
        let (got_experts, got): (Vec<_>, Vec<_>) = got.token(token).iter().copied().unzip();
        let (experts, weights): (Vec<_>, Vec<_>) = expected.iter().copied().unzip();
        assert_eq!(got_experts, experts, "{} {mode}", part.at);
        let row = |weights: Vec<f32>| Tensor::from_vec(1, weights.len(), weights);
        part.close(mode, &row(got), &row(weights));
    }
}

#[test]
fn experts() {
    for_each_layer(|subject, layer, at| {
        let hf = &subject.hf;
        if hf.is_moe(layer) {
            let sums = [mlp_sums(hf.hidden_size, hf.moe().intermediate_size), moe_sums(hf)].concat();
            let part = Part { subject, at: format!("{at}.mlp.experts"), sums };
            let gate = Part { subject, at: format!("{at}.mlp.gate"), sums: Vec::new() };
            let x = noise(TOKENS, hf.hidden_size, 7);
            let routes = reference::gate(hf.moe(), &gate.scope(), &x).unwrap();
            let expected = reference::experts(hf.moe(), &part.scope(), &x, &routes).unwrap();
            let routing = gate.stages::<MoeGate>().prefill(&x, 0, &mut ());
            let stages = part.stages::<Experts>();
            let got = stages.prefill(ExpertsInput { x: &x, routing: &routing }, 0, &mut ());
            part.close("prefill", &got, &expected);
            let pages: [&[PageId]; TOKENS] = [&[]; TOKENS];
            let step = DecodeStep::new(&[0; TOKENS], &pages);
            let input = ExpertsInput { x: &x, routing: &routing };
            let got = Experts::forward_decode(input, &step, stages.run.decode(&mut ())).unwrap();
            part.close("decode", &got, &expected);
        }
    });
}

#[test]
fn moe() {
    for_each_layer(|subject, layer, at| {
        let hf = &subject.hf;
        if hf.is_moe(layer) {
            let part = Part { subject, at: format!("{at}.mlp"), sums: moe_sums(hf) };
            let x = noise(TOKENS, hf.hidden_size, 8);
            let expected = reference::moe(hf.moe(), &part.scope(), &x).unwrap().output;
            part.both_modes::<Moe>(&x, &expected, Tensor::clone);
        }
    });
}

#[test]
fn decoder_block() {
    fn check<F: FeedForward>(subject: &Subject, layer: usize, at: &str)
    where
        <DecoderBlock<F> as Module>::Weights<SavedWeight>: Serialize + DeserializeOwned,
    {
        let hf = &subject.hf;
        let part = Part { subject, at: at.to_owned(), sums: block_sums(hf, layer, TOKENS) };
        let x = noise(TOKENS, hf.hidden_size, 9);
        let expected = reference::decoder_block(hf, &part.scope(), layer, &x).unwrap().output;
        part.both_modes::<DecoderBlock<F>>(&x, &expected, Tensor::clone);
    }
    for_each_layer(|subject, layer, at| {
        if subject.hf.is_moe(layer) {
            check::<Moe>(subject, layer, at);
        } else {
            check::<Mlp>(subject, layer, at);
        }
    });
    // Both kinds are decoder blocks.
    fn assert_module<M: Module>() {}
    assert_module::<MlpDecoderBlock>();
    assert_module::<MoeDecoderBlock>();
}

#[test]
fn lm_head() {
    for subject in &subjects() {
        let hf = &subject.hf;
        let part = Part { subject, at: String::new(), sums: vec![hf.hidden_size] };
        let x = noise(TOKENS, hf.hidden_size, 10);
        let expected = reference::lm_head(hf, &part.scope(), &x).unwrap();
        part.both_modes::<LmHead>(&x, &expected, Tensor::clone);
    }
}

#[test]
fn mtp() {
    for subject in &subjects() {
        let hf = &subject.hf;
        if hf.mtp_layers == 1 {
            let sums = [block_sums(hf, hf.num_hidden_layers, TOKENS), vec![4 * hf.hidden_size]].concat();
            let part = Part { subject, at: String::new(), sums };
            let (tokens, hidden) = (text(hf, TOKENS), noise(TOKENS, hf.hidden_size, 11));
            let expected = reference::mtp(hf, &part.scope(), &tokens, &hidden).unwrap().logits;
            let stages = part.stages::<Mtp>();
            let input = MtpInput { tokens: &tokens, hidden: &hidden };
            part.close("mtp prefill", &stages.prefill(input, 0, &mut stages.state()).logits, &expected);
            let mut state = stages.state();
            let outputs = chunks(&hidden, 1).map(|(position, hidden)| {
                let input = MtpInput { tokens: &tokens[position..=position], hidden: &hidden };
                stages.decode(input, position, &mut state).logits
            });
            part.close("mtp decode", &concat_rows(outputs), &expected);
        }
    }
}

/// Several users in one decode step, at different positions and with scattered pages, get what each gets alone.
#[test]
fn users_decode_together_as_each_alone() {
    for subject in &subjects() {
        let (hf, lengths) = (&subject.hf, [3, 17, 9]);
        let sums = (0..hf.num_hidden_layers).flat_map(|layer| block_sums(hf, layer, 17)).collect();
        let part = Part { subject, at: String::new(), sums };
        let stages = part.stages::<Model>();
        let mut state = stages.state();
        // Every third page, from another start for each user.
        let table = |user: usize| stages.prefill_step(0).pages[user..].iter().step_by(3).copied().collect();
        let tables: Vec<Vec<PageId>> = (0..lengths.len()).map(table).collect();
        for (user, &length) in lengths.iter().enumerate() {
            let tokens = &text(hf, 40)[user..user + length];
            let step = PrefillStep { pages: &tables[user], ..stages.prefill_step(0) };
            Model::forward_prefill(tokens, &step, stages.run.prefill(&mut state)).unwrap();
        }
        let next: Vec<_> =
            lengths.iter().enumerate().map(|(user, length)| text(hf, 40)[user + length]).collect();
        let pages: Vec<_> = tables.iter().map(Vec::as_slice).collect();
        let step = DecodeStep::new(&lengths, &pages);
        let together = Model::forward_decode(&next, &step, stages.run.decode(&mut state)).unwrap().logits;
        let alone = lengths.iter().enumerate().map(|(user, length)| {
            let mut state = stages.state();
            let logits = stages.prefill(&text(hf, 40)[user..=user + length], 0, &mut state).logits;
            Tensor::from_vec(1, logits.cols(), logits.row(*length).to_vec())
        });
        part.close("three users", &together, &concat_rows(alone));
    }
}
