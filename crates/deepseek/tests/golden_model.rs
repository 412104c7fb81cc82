//! The whole model, through all three stages, against what transformers computes: logits of a prompt at once, in chunks
//! and token by token, greedy generation, long contexts, and the MTP layer.

mod support;

use dsv3_deepseek::{HfConfig, Model, Mtp, MtpInput};
use dsv3_runtime::{Module, Prefix, Tensor, TokenId};
use support::{CASES, Case, assert_close, block_sums, concat_rows, f32_tolerance, stages::Stages};

fn stages(case: &Case) -> (HfConfig, Stages<Model>) {
    let hf = case.config();
    let stages = Stages::new(&case.checkpoint_path(), &hf, &Prefix::root());
    (hf, stages)
}

/// The tolerance of the logits of a prompt: every sum on the way, and the head's.
fn logits_tolerance(hf: &HfConfig, tokens: usize) -> f64 {
    let layers = (0..hf.num_hidden_layers).flat_map(|layer| block_sums(hf, layer, tokens));
    f32_tolerance(layers.chain([hf.hidden_size]))
}

#[test]
fn logits_of_a_prompt_at_once_in_chunks_and_token_by_token() {
    for case in CASES {
        let ((hf, stages), golden) = (stages(case), case.golden());
        let (tokens, expected) = (golden.tokens("tokens"), golden.tensor("logits"));
        let tolerance = logits_tolerance(&hf, tokens.len());
        for chunk in [tokens.len(), 1, 5, 7, 16] {
            let mut state = stages.state();
            let chunks = tokens.chunks(chunk).enumerate();
            let logits: Vec<_> =
                chunks.map(|(i, tokens)| stages.prefill(tokens, i * chunk, &mut state).logits).collect();
            assert_close(
                &format!("{} in chunks of {chunk}", case.name),
                &concat_rows(logits.into_iter()),
                &expected,
                tolerance,
            );
        }
        for prefilled in [0, 10] {
            let mut state = stages.state();
            let mut logits = Vec::new();
            if prefilled > 0 {
                logits.push(stages.prefill(&tokens[..prefilled], 0, &mut state).logits);
            }
            for position in prefilled..tokens.len() {
                logits.push(stages.decode(&tokens[position..=position], position, &mut state).logits);
            }
            let name = format!("{} token by token after {prefilled}", case.name);
            assert_close(&name, &concat_rows(logits.into_iter()), &expected, tolerance);
        }
    }
}

#[test]
fn chosen_experts_are_counted_once_somebody_asks() {
    let case = &CASES[0];
    let ((hf, stages), tokens) = (stages(case), case.golden().tokens("tokens"));
    let mut state = stages.state();
    stages.prefill(&tokens[..5], 0, &mut state);
    let (first_layer, nothing) = state.take_chosen_experts();
    assert_eq!((first_layer, nothing.len()), (hf.first_k_dense_replace, hf.num_hidden_layers - first_layer));
    assert!(nothing.iter().all(|layer| *layer == vec![0; hf.moe().routed_experts]), "{nothing:?}");

    stages.prefill(&tokens[5..12], 5, &mut state);
    stages.decode(&tokens[12..13], 12, &mut state);
    let (_, chosen) = state.take_chosen_experts();
    for layer in chosen {
        // Each of eight tokens goes to as many experts, and to each once.
        assert_eq!(layer.iter().sum::<u32>() as usize, 8 * hf.moe().experts_per_token, "{layer:?}");
        assert!(layer.iter().all(|&count| count <= 8), "{layer:?}");
    }
    let (_, again) = state.take_chosen_experts();
    assert_eq!(again, nothing);
}

#[test]
fn sixty_four_greedy_tokens() {
    for case in CASES {
        let ((_, stages), golden) = (stages(case), case.golden());
        let (prompt, expected) = (golden.tokens("greedy.prompt"), golden.tokens("greedy.tokens"));
        let mut state = stages.state();
        let logits = stages.prefill(&prompt, 0, &mut state).logits;
        let mut tokens = vec![best(logits.row(logits.rows() - 1))];
        while tokens.len() < expected.len() {
            let position = prompt.len() + tokens.len() - 1;
            let logits = stages.decode(&tokens[tokens.len() - 1..], position, &mut state).logits;
            tokens.push(best(logits.row(0)));
        }
        assert_eq!(tokens, expected, "{}", case.name);
    }
}

#[test]
fn the_last_logits_of_a_long_text() {
    for case in CASES {
        let ((hf, stages), golden) = (stages(case), case.golden());
        if !golden.contains("long.tokens") {
            continue;
        }
        let (tokens, expected) = (golden.tokens("long.tokens"), golden.tensor("long.logits_last"));
        let last = tokens.len() - 1;
        let mut state = stages.state();
        let mut start = 0;
        for chunk in tokens[..last].chunks(97) {
            stages.prefill(chunk, start, &mut state);
            start += chunk.len();
        }
        let logits = stages.decode(&tokens[last..], last, &mut state).logits;
        assert_close(&format!("{} long", case.name), &logits, &expected, logits_tolerance(&hf, tokens.len()));
    }
}

#[test]
fn the_mtp_layer_in_both_modes() {
    for case in CASES {
        let ((hf, stages), golden) = (stages(case), case.golden());
        if hf.mtp_layers == 0 {
            continue;
        }
        let (tokens, hidden) = (golden.tokens("mtp.input_tokens"), golden.tensor("mtp.hidden"));
        let expected = golden.tensor("mtp.logits");
        let tolerance = f32_tolerance(
            [block_sums(&hf, hf.num_hidden_layers, tokens.len()), vec![4 * hf.hidden_size]].concat(),
        );
        let mut state = stages.state();
        let step = stages.prefill_step(0);
        let run = Model::mtp_prefill(stages.run.prefill(&mut state)).unwrap();
        let input = MtpInput { tokens: &tokens, hidden: &hidden };
        let logits = Mtp::forward_prefill(input, &step, run).unwrap().logits;
        assert_close(&format!("{} mtp prefill", case.name), &logits, &expected, tolerance);

        let mtp = Stages::<Mtp>::new(&case.checkpoint_path(), &hf, &Prefix::root());
        let mut state = mtp.state();
        let logits: Vec<_> = (0..tokens.len())
            .map(|position| {
                let hidden = Tensor::from_vec(1, hidden.cols(), hidden.row(position).to_vec());
                let input = MtpInput { tokens: &tokens[position..=position], hidden: &hidden };
                mtp.decode(input, position, &mut state).logits
            })
            .collect();
        assert_close(
            &format!("{} mtp decode", case.name),
            &concat_rows(logits.into_iter()),
            &expected,
            tolerance,
        );
    }
}

/// The most likely token; of equal ones the lowest.
fn best(logits: &[f32]) -> TokenId {
    let best = (0..logits.len()).reduce(|best, id| if logits[id] > logits[best] { id } else { best });
    TokenId(best.unwrap() as u32)
}
