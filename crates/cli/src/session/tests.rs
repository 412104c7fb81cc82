use super::*;
use crate::{
    args::{Cli, Command, GenerateArgs},
    embedded,
    model::ModelPlace,
};
use clap::Parser;
use dsv3_engine::{
    Bos, CacheState, Engine, EngineConfig, Request, Reuse, SamplingParams, StreamEvent, Submission,
    TokenLogprobs, Tokenizer,
};
use std::{
    fs,
    ops::ControlFlow,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, UNIX_EPOCH},
};

/// The embedded model with its tokenizer, and room for sequences.
struct Opened {
    session: Session,
    tokenizer: Arc<Tokenizer>,
    fingerprint: String,
}

fn open(cache: &Path, options: &str) -> Opened {
    let words = ["dsv3", "generate", "--threads", "2", "--repeatable", "--cache"].map(str::to_owned);
    let words = words.into_iter().chain([cache.display().to_string()]);
    let words = words.chain(options.split_whitespace().map(str::to_owned));
    let Command::Generate(args) = Cli::parse_from(words).command else { panic!("another command") };
    let GenerateArgs { model, running, device, .. } = *args;
    let model = OpenModel::open(&ModelPlace::resolve(&model).unwrap()).unwrap();
    let precision = running.precision.or_fast();
    let configs = OperatorConfigs::with_precision(&model.hf, device.mesh.layout.layout(), precision).unwrap();
    let tokenizer = Arc::new(Tokenizer::from_dir(model.dir(), model.hf.vocab_size).unwrap());
    let room = Room { sequences: 16, cache: precision.cache, ..Room::one(320) };
    let fingerprint = cache_fingerprint(&model, &configs, room.cache).unwrap();
    Opened { session: Session::open(&model, configs, room, device).unwrap(), tokenizer, fingerprint }
}

#[derive(Default)]
struct Answer {
    /// Each with the bits of its log probability, into which all logits go.
    tokens: Vec<(TokenId, u32)>,
    cached: usize,
}

/// Runs requests together; their answers.
fn run(engine: &mut Engine<&mut Session>, requests: &[Submission]) -> Vec<Answer> {
    let answers: Vec<Arc<Mutex<Answer>>> = requests
        .iter()
        .map(|request| {
            let answer = Arc::new(Mutex::new(Answer::default()));
            let sink = Arc::clone(&answer);
            let take = move |event| {
                let mut answer = sink.lock().unwrap();
                match event {
                    StreamEvent::Token { event, .. } => {
                        let bits = |logprobs: Option<TokenLogprobs>| logprobs.map(|it| it.logprob.to_bits());
                        let token = event.token.map(|it| (it.token, bits(it.logprobs).expect("asked for")));
                        answer.tokens.extend(token);
                    }
                    StreamEvent::Done(usage) => answer.cached = usage.cached_tokens,
                    StreamEvent::Failed(error) => panic!("{error}"),
                    StreamEvent::Started { .. } | StreamEvent::PromptLogprobs(_) => {}
                }
                ControlFlow::Continue(())
            };
            engine.submit(request, take).unwrap();
            answer
        })
        .collect();
    while !engine.is_idle() {
        engine.step().unwrap();
    }
    assert_eq!(engine.snapshot().pages.held, 0);
    answers.into_iter().map(|answer| std::mem::take(&mut *answer.lock().unwrap())).collect()
}

/// Sixteen requests of several lengths, of which some begin alike and some draw their tokens.
fn requests(tokenizer: &Tokenizer) -> Vec<Submission> {
    let story = "Once upon a time there was a little girl who lived in a house near the forest. ".repeat(8);
    let request = |number: usize| {
        let text = match number % 3 {
            0 => format!("<｜User｜>{number} + {}?<｜Assistant｜><think>\n", 7 * number + 3),
            1 => story[..40 + 30 * number].to_owned(),
            _ => format!("{}{number}", &story[..200]),
        };
        let sampling = match number % 4 {
            3 => SamplingParams::new(1.0, 0, 1.0, number as u64).unwrap(),
            _ => SamplingParams::GREEDY,
        };
        let prompt = tokenizer.encode(&text, Bos::Add).unwrap();
        Submission {
            prompt: prompt.into(),
            request: Request { max_new_tokens: 40, logprobs: Some(0), ..Request::of(sampling) },
        }
    };
    (0..16).map(request).collect()
}

/// Requests beside each other, in chunks and on pages that are found in the cache, against each alone in one piece: with
/// the real kernels, to the last bit.
#[test]
fn sixteen_requests_get_what_each_would_get_alone() {
    let cache = tempfile::tempdir().unwrap();
    for options in ["", "--arithmetic float --kv-cache f32", "--format q4_K", "--mesh 1x2"] {
        let Opened { mut session, tokenizer, .. } = open(cache.path(), options);
        let requests = requests(&tokenizer);
        let alone = EngineConfig::single(4096);
        let mut engine = Engine::new(&mut session, Arc::clone(&tokenizer), alone).unwrap();
        let expected: Vec<_> = requests
            .iter()
            .map(|request| run(&mut engine, std::slice::from_ref(request)).remove(0).tokens)
            .collect();
        let together =
            EngineConfig { prefill_chunk: 64, gap: None, reuse: Reuse::Prompts, ..EngineConfig::default() };
        let mut engine = Engine::new(&mut session, Arc::clone(&tokenizer), together).unwrap();
        for round in 0..2 {
            let answers = run(&mut engine, &requests);
            for (number, (answer, expected)) in answers.iter().zip(&expected).enumerate() {
                assert_eq!(answer.tokens, *expected, "{options:?} round {round}, request {number}");
            }
            let cached: usize = answers.iter().map(|answer| answer.cached).sum();
            assert!(round == 0 || cached > 0, "what was run before is found");
        }
    }
}

#[test]
fn pages_on_disk_give_the_same_tokens_as_a_prompt_that_is_run() {
    let (cache, directory) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let state = |opened: &Opened| CacheState {
        directory: directory.path().to_owned(),
        fingerprint: opened.fingerprint.clone(),
    };
    let mut first = open(cache.path(), "");
    let request = [requests(&first.tokenizer).remove(13)];
    let saved = state(&first);
    let mut engine =
        Engine::new(&mut first.session, Arc::clone(&first.tokenizer), EngineConfig::default()).unwrap();
    let expected = run(&mut engine, &request).remove(0);
    assert!(engine.save_cache(&saved).unwrap().pages > 0);

    let mut second = open(cache.path(), "");
    let saved = state(&second);
    let mut engine =
        Engine::new(&mut second.session, Arc::clone(&second.tokenizer), EngineConfig::default()).unwrap();
    assert!(engine.restore_cache(&saved).unwrap().pages > 0);
    let answer = run(&mut engine, &request).remove(0);
    assert!(
        expected.cached == 0 && answer.cached >= PAGE_SIZE,
        "{} tokens came from the disk",
        answer.cached
    );
    assert_eq!(answer.tokens, expected.tokens);

    for options in ["--kv-cache f32", "--arithmetic float", "--format q8_0"] {
        let mut other = open(cache.path(), options);
        let saved = state(&other);
        let mut engine =
            Engine::new(&mut other.session, Arc::clone(&other.tokenizer), EngineConfig::default()).unwrap();
        assert_eq!(engine.restore_cache(&saved).unwrap().pages, 0, "{options}");
    }
    let mut mesh = open(cache.path(), "--mesh 1x2");
    let saved = state(&mesh);
    let mut engine =
        Engine::new(&mut mesh.session, Arc::clone(&mesh.tokenizer), EngineConfig::default()).unwrap();
    let error = engine.save_cache(&saved).unwrap_err().to_string();
    assert!(error.starts_with("cache-state is for a mesh"), "{error}");
}

#[test]
fn checkpoints_of_one_shape_have_fingerprints_of_their_own() {
    let directory = tempfile::tempdir().unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny");
    let fingerprint = |time: u64| {
        for entry in fs::read_dir(&model).unwrap().map(Result::unwrap) {
            if !entry.file_type().unwrap().is_file() {
                continue;
            }
            let path = directory.path().join(entry.file_name());
            fs::copy(entry.path(), &path).unwrap();
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(UNIX_EPOCH + Duration::from_secs(time)).unwrap();
        }
        let place = directory.path().display().to_string();
        let words = ["dsv3", "generate", "--model", &place, "--cache", &place];
        let Command::Generate(args) = Cli::parse_from(words).command else { panic!("another command") };
        let model = OpenModel::open(&ModelPlace::resolve(&args.model).unwrap()).unwrap();
        let precision = args.running.precision.or_fast();
        let layout = args.device.mesh.layout.layout();
        let configs = OperatorConfigs::with_precision(&model.hf, layout, precision).unwrap();
        (model.facts(), cache_fingerprint(&model, &configs, precision.cache).unwrap())
    };
    let (one, same, other) = (fingerprint(1), fingerprint(1), fingerprint(2));
    assert_eq!(one, same);
    assert_eq!(one.0, other.0);
    assert_ne!(one.1, other.1);
}

#[test]
fn a_context_beyond_memory_is_refused() {
    let hf = HfConfig::from_json(Path::new("config.json"), embedded::CONFIG_JSON).unwrap();
    Room::one(2048).check_memory(&hf).unwrap();
    let error = Room::one(1 << 60).check_memory(&hf).unwrap_err().to_string();
    assert!(error.contains("1152921504606846976 tokens") && error.contains("--context"), "{error}");
    let error = Room { sequences: 1 << 50, ..Room::one(2048) }.check_memory(&hf).unwrap_err().to_string();
    assert!(error.contains("1125899906842624 times a context of 2048"), "{error}");
}
