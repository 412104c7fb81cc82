//! The model inside the binary does what it was trained for: it adds and subtracts, and its MTP layer foresees the token
//! after the next.

mod support;

use dsv3_deepseek::{HfConfig, Model, Mtp, MtpInput};
use dsv3_engine::{Bos, ChatOptions, ChatTemplate, Message, Tokenizer};
use dsv3_mesh::Layout;
use dsv3_runtime::{
    Capacity, Checkpoint, Device, Fingerprint, LogitRows, Module, PageId, PrefillStep, RunConfig, Source,
    Tensor, TokenId, WeightCache,
};
use serde_json::Value;
use std::{fs, path::Path};
use support::{Workplace, tiny};

/// Held-out problems that the tests ask, out of 500.
const PROBLEMS: usize = 60;

#[test]
fn the_first_command_of_the_readme_answers() {
    let run = Workplace::new().run(["generate", "What is 27 + 58?"]).success();
    assert!(run.stdout.starts_with("<think>\n27+58\n"), "{run:#?}");
    assert!(run.stdout.ends_with("</think>\n\n27 + 58 = 85\n"), "{run:#?}");
    assert!(run.stderr.contains("tokens/s") && run.stderr.contains("GB/s"), "{run:#?}");
}

/// All that stage 1 writes, the WeightConfig too, is little beside the checkpoint.
#[test]
fn a_cache_is_small() {
    let place = Workplace::new();
    let run = place.run(["convert"]).success();
    let config = run.stdout.lines().find_map(|line| line.strip_prefix("WeightConfig: ")).unwrap();
    let bytes = |dir: &Path, what: &str| -> u64 {
        let files = fs::read_dir(dir).unwrap().map(Result::unwrap);
        files
            .filter(|file| file.file_name().to_str().unwrap().ends_with(what))
            .map(|file| file.metadata().unwrap().len())
            .sum()
    };
    let (written, checkpoint) =
        (bytes(Path::new(config).parent().unwrap(), ""), bytes(&tiny(), ".safetensors"));
    assert!(written > 0 && written * 100 < checkpoint * 15, "{written} of {checkpoint} bytes");
}

/// At least 95 % of problems that training never saw, exactly right with greedy decoding.
#[test]
fn held_out_problems_are_solved() {
    let heldout = tiny().join("heldout.json");
    let answers: Value = serde_json::from_slice(&fs::read(&heldout).unwrap()).unwrap();
    let (place, problems) = (Workplace::new(), PROBLEMS.to_string());
    let args = ["generate", "--temperature", "0", "--json", "--num-prompts", &problems];
    let files = ["--prompts-file", heldout.to_str().unwrap(), "--output-path", "out.json"];
    let run = place.run(args.iter().chain(&files)).success();
    let outputs: Vec<Value> = run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(outputs.len(), PROBLEMS);
    let wrong: Vec<_> = outputs
        .iter()
        .zip(answers.as_array().unwrap())
        .filter(|(output, problem)| {
            let text = output["text"].as_str().unwrap();
            let answer = format!(" = {}", problem["answer"].as_str().unwrap());
            !text.ends_with(&answer) || output["finish_reason"] != "stop"
        })
        .collect();
    assert!(wrong.len() * 100 <= PROBLEMS * 5, "{} of {PROBLEMS} are wrong: {wrong:#?}", wrong.len());
}

/// On the model's own greedy answers, at least 70 % of the MTP layer's guesses are what the model says next.
#[test]
fn the_mtp_layer_guesses_the_second_token() {
    let (mut accepted, mut guessed) = (0, 0);
    let model = Embedded::open();
    let problems: Vec<Value> =
        serde_json::from_slice(&fs::read(tiny().join("heldout.json")).unwrap()).unwrap();
    for problem in &problems[..8] {
        let prompt = model.chat(problem["prompt"].as_str().unwrap());
        let tokens = model.answer(&prompt);
        let (logits, hidden) = model.run(&tokens);
        // Position t holds the hidden state of token t; with token t + 1 the MTP layer guesses token t + 2.
        let guesses = model.mtp(&tokens[1..], &hidden);
        for position in prompt.len() - 1..tokens.len() - 2 {
            assert_eq!(best(logits.row(position + 1)), tokens[position + 2], "the answer is greedy");
            accepted += usize::from(best(guesses.row(position)) == tokens[position + 2]);
            guessed += 1;
        }
    }
    assert!(guessed > 200, "{guessed}");
    assert!(accepted * 100 >= guessed * 70, "{accepted} of {guessed} guesses are right");
}

/// The embedded model, in process.
struct Embedded {
    run: RunConfig<Model>,
    hf: HfConfig,
    tokenizer: Tokenizer,
    template: ChatTemplate,
}

impl Embedded {
    fn open() -> Self {
        let hf = HfConfig::from_file(&tiny().join("config.json")).unwrap();
        let checkpoint = Checkpoint::open(&tiny()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let source = Source { checkpoint: &checkpoint, fingerprint: Fingerprint::of(&checkpoint, b"") };
        let cache = WeightCache::locate(dir.path(), &checkpoint, Layout::SINGLE);
        cache.convert::<Model>(&hf, &source, false, &mut |_| {}).unwrap();
        let weights = cache.load::<Model>(&hf, &source).unwrap();
        let prefill = Model::prefill_model_config(&hf, Layout::SINGLE).unwrap();
        let decode = Model::decode_model_config(&hf, Layout::SINGLE).unwrap();
        let tokenizer = Tokenizer::from_dir(&tiny(), hf.vocab_size).unwrap();
        let template = ChatTemplate::from_dir(&tiny()).unwrap().unwrap();
        Self {
            run: RunConfig::new(prefill, decode, weights, Device::single(2).unwrap()),
            hf,
            tokenizer,
            template,
        }
    }

    fn chat(&self, prompt: &str) -> Vec<TokenId> {
        let options = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
        let text = self.template.render(&[Message::new("user", prompt)], &options).unwrap();
        self.tokenizer.encode(&text, Bos::AsWritten).unwrap()
    }

    /// The prompt and the greedy answer, up to the end of the sentence.
    fn answer(&self, prompt: &[TokenId]) -> Vec<TokenId> {
        let mut tokens = prompt.to_vec();
        let (mut state, pages) = self.state();
        let mut start = 0;
        while tokens.last() != self.hf.eos_token_ids.last() {
            assert!(tokens.len() < prompt.len() + 200, "the answer ends");
            let step = PrefillStep::new(start, &pages, LogitRows::Last);
            let logits =
                Model::forward_prefill(&tokens[start..], &step, self.run.prefill(&mut state)).unwrap().logits;
            start = tokens.len();
            tokens.push(best(logits.row(0)));
        }
        tokens
    }

    /// Logits and hidden states of all tokens.
    fn run(&self, tokens: &[TokenId]) -> (Tensor, Tensor) {
        let (mut state, pages) = self.state();
        let step = PrefillStep::new(0, &pages, LogitRows::All);
        let output = Model::forward_prefill(tokens, &step, self.run.prefill(&mut state)).unwrap();
        (output.logits, output.hidden)
    }

    /// The MTP layer's logits, given the token after each position.
    fn mtp(&self, next: &[TokenId], hidden: &Tensor) -> Tensor {
        let (mut state, pages) = self.state();
        let step = PrefillStep::new(0, &pages, LogitRows::All);
        let rows = next.len();
        let hidden = Tensor::from_vec(rows, hidden.cols(), hidden.values()[..rows * hidden.cols()].to_vec());
        let run = Model::mtp_prefill(self.run.prefill(&mut state)).unwrap();
        Mtp::forward_prefill(MtpInput { tokens: next, hidden: &hidden }, &step, run).unwrap().logits
    }

    fn state(&self) -> (<Model as Module>::State, Vec<PageId>) {
        let capacity = Capacity { max_context: 512, page_size: 64, pages: 8 };
        (Model::create_state(&self.hf, Layout::SINGLE, &capacity).unwrap(), (0..8).map(PageId).collect())
    }
}

fn best(logits: &[f32]) -> TokenId {
    let best = (0..logits.len()).reduce(|best, id| if logits[id] > logits[best] { id } else { best });
    TokenId(best.unwrap() as u32)
}
