//! The whole loop over an automaton whose cache is the pages: a wrong page, position or chunk changes the text.

use std::ops::ControlFlow;

use proptest::prelude::*;

use dsv3_runtime::LogitRows;

use super::*;
use crate::testing::{BOS, EOS, FakeModel, THINK, VOCAB_SIZE, hashed, one_hot, tokenizer};
use crate::{Bos, GenerationConfig, ModelLimits, SampledToken, SamplingParams, TokenLogprobs};

const LIMITS: ModelLimits =
    ModelLimits { vocab_size: VOCAB_SIZE, max_context: 64, page_size: 4, page_count: 16, rows: 1 };

fn request(max_new_tokens: usize) -> Request {
    Request { max_new_tokens, eos_token_ids: vec![EOS], ..Request::of(SamplingParams::GREEDY) }
}

/// A model that says `text` after a prompt of `prompt_len` tokens, then EOS.
fn says(text: &[TokenId], prompt_len: usize) -> FakeModel<impl FnMut(&[TokenId]) -> Vec<f32>> {
    FakeModel::new(LIMITS, move |tokens| one_hot(text.get(tokens.len() - prompt_len).copied().unwrap_or(EOS)))
}

fn go_on(_: &Event) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn encode(text: &str) -> Vec<TokenId> {
    tokenizer().encode(text, Bos::Add).unwrap()
}

/// Runs to the end; the events' texts and the result.
fn run(model: &mut impl LanguageModel, prompt: &[TokenId], request: &Request) -> (Vec<Event>, Generation) {
    let mut events = Vec::new();
    let mut generator = Generator::new(model, tokenizer(), 5).unwrap();
    let generation = generator
        .generate(prompt, request, |event| {
            events.push(event.clone());
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(generator.engine.snapshot().pages.free, LIMITS.page_count, "all pages are given back");
    (events, generation)
}

fn text_of(events: &[Event]) -> String {
    events.iter().map(|event| event.text_delta.as_str()).collect()
}

#[test]
fn a_prompt_is_stopped_between_its_chunks() {
    let mut model = FakeModel::new(LIMITS, hashed);
    let prompt: Vec<TokenId> = (0..30).map(TokenId).collect();
    let mut generator = Generator::new(&mut model, tokenizer(), 5).unwrap();
    let mut steps = 0;
    let should_stop = || {
        steps += 1;
        steps == 2
    };
    let generation = generator.generate_until(&prompt, &request(9), should_stop, go_on).unwrap();
    assert_eq!((generation.finish, generation.tokens.len()), (Finish::Cancelled, 0));
    assert_eq!(generator.engine.snapshot().pages.free, LIMITS.page_count);
    assert_eq!(generator.generate(&prompt, &request(2), go_on).unwrap().tokens.len(), 2);
    assert_eq!(steps, 2);
    assert_eq!(model.prefills.iter().filter(|(start, ..)| *start == 0).count(), 2);
}

#[test]
fn a_prompt_is_continued_until_the_end_of_sequence() {
    let prompt = encode("What?");
    let answer = tokenizer().encode("<think>hé</think>😀", Bos::AsWritten).unwrap();
    let mut model = says(&answer, prompt.len());
    let (events, generation) = run(&mut model, &prompt, &request(40));
    assert_eq!(generation.text, "<think>hé</think>😀");
    assert_eq!(text_of(&events), generation.text);
    assert_eq!(generation.tokens, answer);
    assert_eq!(answer[0], THINK);
    assert_eq!(generation.finish, Finish::EndOfSequence(EOS));
    let last = events.last().unwrap();
    assert_eq!((last.token.clone(), last.finish.clone()), (None, Some(Finish::EndOfSequence(EOS))));
    assert!(events[..events.len() - 1].iter().all(|event| event.finish.is_none()));
    assert_eq!(events[0].token, Some(SampledToken { token: THINK, logprobs: None }));
    assert_eq!(generation.timings.prefill.tokens, prompt.len());
    assert_eq!(
        generation.timings.decode.tokens,
        answer.len(),
        "one step for each token after the first, EOS too"
    );
}

#[test]
fn a_request_of_the_checkpoints_defaults_ends_at_its_ids_or_the_tokenizers() {
    let mut defaults = GenerationConfig::default();
    let made = Request::new(&defaults, tokenizer(), 1, 7).unwrap();
    assert_eq!(made, request(7));
    defaults.eos_token_ids = vec![TokenId(5), TokenId(6)];
    assert_eq!(Request::new(&defaults, tokenizer(), 1, 7).unwrap().eos_token_ids, defaults.eos_token_ids);
    (defaults.do_sample, defaults.temperature) = (true, -1.0);
    let error = Request::new(&defaults, tokenizer(), 1, 7).unwrap_err();
    assert!(matches!(error, Error::Parameter { parameter: "temperature", .. }), "{error}");
}

#[test]
fn log_probabilities_come_when_they_are_asked_for() {
    let request = Request { logprobs: Some(1), ..request(3) };
    let (events, _) = run(&mut says(&[TokenId(50)], 1), &[BOS], &request);
    // The others' logits are 10^9 lower: the only possible token is certain, exactly.
    let logprobs = TokenLogprobs { logprob: 0.0, top: vec![(TokenId(50), 0.0)] };
    assert_eq!(events[0].token, Some(SampledToken { token: TokenId(50), logprobs: Some(logprobs) }));
}

#[test]
fn a_prompt_runs_in_chunks_and_only_the_last_has_logits() {
    let prompt: Vec<TokenId> = (0..12).map(TokenId).collect();
    for (chunk, expected) in [
        (5, vec![(0, 4, LogitRows::None), (4, 4, LogitRows::None), (8, 4, LogitRows::Last)]),
        (6, vec![(0, 4, LogitRows::None), (4, 4, LogitRows::None), (8, 4, LogitRows::Last)]),
        (
            3,
            vec![
                (0, 3, LogitRows::None),
                (3, 1, LogitRows::None),
                (4, 3, LogitRows::None),
                (7, 1, LogitRows::None),
                (8, 3, LogitRows::None),
                (11, 1, LogitRows::Last),
            ],
        ),
        (12, vec![(0, 12, LogitRows::Last)]),
        (usize::MAX, vec![(0, 12, LogitRows::Last)]),
    ] {
        let mut model = says(&[], prompt.len());
        Generator::new(&mut model, tokenizer(), chunk)
            .unwrap()
            .generate(&prompt, &request(4), go_on)
            .unwrap();
        assert_eq!(model.prefills, expected);
        assert_eq!(model.decodes, 0);
    }
    let mut model = says(&[], 1);
    let error = Generator::new(&mut model, tokenizer(), 0).err().unwrap();
    assert!(matches!(error, Error::Parameter { parameter: "prefill_chunk", .. }), "{error}");
}

#[test]
fn a_limit_ends_with_length() {
    let prompt = encode("x");
    let long = vec![TokenId(50); 200];
    let mut model = says(&long, prompt.len());
    let (events, generation) = run(&mut model, &prompt, &request(3));
    assert_eq!((events.len(), generation.tokens.len()), (3, 3));
    assert_eq!(generation.finish, Finish::MaxNewTokens);
    assert_eq!(model.decodes, 2, "the last token is not run");

    let (_, generation) = run(&mut says(&long, prompt.len()), &prompt, &request(1000));
    assert_eq!(generation.finish, Finish::ContextEnd);
    assert_eq!(generation.finish.reason(), crate::FinishReason::Length);
    assert_eq!(prompt.len() + generation.tokens.len(), LIMITS.max_context);

    let small = ModelLimits { page_count: 3, ..LIMITS };
    let mut model = says(&long, prompt.len());
    model.limits = small;
    let generation =
        Generator::new(&mut model, tokenizer(), 5).unwrap().generate(&prompt, &request(1000), go_on).unwrap();
    assert_eq!(
        prompt.len() + generation.tokens.len(),
        12,
        "fewer pages than the context end it the same way"
    );
}

#[test]
fn no_tokens_are_asked_for_or_fit() {
    let mut model = says(&[], 1);
    let (events, generation) = run(&mut model, &[BOS], &request(0));
    assert!(generation.tokens.is_empty() && model.prefills.is_empty());
    let ends = Event { token: None, text_delta: String::new(), finish: Some(Finish::MaxNewTokens) };
    assert_eq!(events, [ends]);
    assert_eq!(generation.finish, Finish::MaxNewTokens);
    let full = vec![BOS; LIMITS.max_context];
    let (_, generation) = run(&mut model, &full, &request(5));
    assert_eq!((generation.tokens.len(), generation.finish), (0, Finish::ContextEnd));
}

#[test]
fn prompts_that_cannot_be_run_are_refused() {
    let mut model = says(&[], 1);
    let mut generator = Generator::new(&mut model, tokenizer(), 5).unwrap();
    let mut refusal =
        |prompt: &[TokenId]| generator.generate(prompt, &request(5), go_on).unwrap_err().to_string();
    assert_eq!(refusal(&[]), "the prompt is empty: there is nothing to continue");
    assert_eq!(
        refusal(&[BOS, TokenId(280)]),
        "prompt token 1 has id 280, but the model's vocabulary has 280 ids"
    );
    assert_eq!(refusal(&[BOS; 65]), "the prompt has 65 tokens, but the context holds 64");
}

#[test]
fn the_caller_may_end_it() {
    let prompt = encode("x");
    let answer = tokenizer().encode("abcdef", Bos::AsWritten).unwrap();
    let mut model = says(&answer, prompt.len());
    let mut count = 0;
    let generation = Generator::new(&mut model, tokenizer(), 5)
        .unwrap()
        .generate(&prompt, &request(40), |_| {
            count += 1;
            if count == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!((generation.text.as_str(), generation.finish), ("ab", Finish::Cancelled));
    assert_eq!(model.decodes, 1);
}

#[test]
fn a_stop_string_over_tokens_is_not_part_of_the_text() {
    let prompt = encode("x");
    let answer = tokenizer().encode("one\nEND\nof it", Bos::AsWritten).unwrap();
    let request = Request { stop: vec!["\nEND\n".to_owned()], ..request(40) };
    let (events, generation) = run(&mut says(&answer, prompt.len()), &prompt, &request);
    assert_eq!((generation.text.as_str(), text_of(&events).as_str()), ("one", "one"));
    assert_eq!(generation.finish, Finish::StopString("\nEND\n".to_owned()));
    assert_eq!(generation.tokens, answer[..8]);

    let cut = tokenizer().encode("one\nEN", Bos::AsWritten).unwrap();
    let (events, generation) = run(&mut says(&cut, prompt.len()), &prompt, &request);
    assert_eq!(generation.text, "one\nEN", "what did not become a stop string is text after all");
    assert_eq!(events.last().unwrap().text_delta, "\nEN");
}

#[test]
fn an_error_of_the_model_frees_the_pages() {
    let mut model = FakeModel::new(LIMITS, |tokens| {
        if tokens.len() < 4 { one_hot(TokenId(50)) } else { vec![f32::NAN; VOCAB_SIZE] }
    });
    let mut generator = Generator::new(&mut model, tokenizer(), 5).unwrap();
    let error = generator.generate(&[BOS, BOS], &request(9), go_on).unwrap_err();
    assert!(matches!(error, Error::Logit { token: TokenId(0), .. }), "{error}");
    assert_eq!(generator.engine.snapshot().pages.free, LIMITS.page_count);
}

#[test]
fn without_eos_ids_it_goes_on_and_special_tokens_are_no_text() {
    let prompt = encode("x");
    let answer = [TokenId(50), EOS, TokenId(51)];
    let keep = Request { eos_token_ids: Vec::new(), ..request(3) };
    let (_, generation) = run(&mut says(&answer, prompt.len()), &prompt, &keep);
    assert_eq!(generation.tokens, answer);
    assert_eq!(generation.text, tokenizer().decode(&[answer[0], answer[2]], false));
    let show = Request { skip_special: false, ..keep };
    let (_, generation) = run(&mut says(&answer, prompt.len()), &prompt, &show);
    assert!(generation.text.contains("<｜end▁of▁sentence｜>"));
}

#[test]
fn a_seed_repeats_and_prompts_one_after_another_do_not_matter() {
    let sampled = |seed| Request {
        sampling: SamplingParams::new(1.0, 50, 0.95, seed).unwrap(),
        eos_token_ids: Vec::new(),
        ..request(30)
    };
    let mut model = FakeModel::new(LIMITS, hashed);
    let mut generator = Generator::new(&mut model, tokenizer(), 3).unwrap();
    let mut tokens =
        |prompt: &[TokenId], seed| generator.generate(prompt, &sampled(seed), go_on).unwrap().tokens;
    let first = tokens(&encode("one prompt"), 1);
    let other = tokens(&encode("another, longer prompt"), 1);
    assert_eq!(tokens(&encode("one prompt"), 1), first);
    assert_ne!(tokens(&encode("one prompt"), 2), first);
    assert_ne!(other, first);
}

proptest! {
    #[test]
    fn what_streams_is_the_decoded_text_up_to_the_first_stop(
        answer in prop::collection::vec(0..u32::try_from(VOCAB_SIZE).unwrap(), 0..40),
        stops in prop::collection::vec("[a-c ée<\u{FFFD}]{1,2}", 0..3),
        skip_special: bool,
    ) {
        let answer: Vec<TokenId> = answer.into_iter().map(TokenId).filter(|&token| token != EOS).collect();
        let request = Request { stop: stops.clone(), skip_special, ..request(60) };
        let (events, generation) = run(&mut says(&answer, 1), &[BOS], &request);
        let whole = tokenizer().decode(&answer, skip_special);
        let ends = (0..=whole.len()).filter(|&end| whole.is_char_boundary(end));
        let first = ends.filter_map(|end| {
            let matches = stops.iter().filter(|stop| whole[..end].ends_with(stop.as_str()));
            matches.max_by_key(|stop| stop.len()).map(|stop| (end, stop))
        }).next();
        let expected = first.map_or(whole.as_str(), |(end, stop)| &whole[..end - stop.len()]);
        prop_assert_eq!(&generation.text, expected);
        prop_assert_eq!(text_of(&events), expected);
        prop_assert_eq!(generation.finish, match first {
            Some((_, stop)) => Finish::StopString(stop.clone()),
            None => Finish::EndOfSequence(EOS),
        });
    }

    #[test]
    fn any_text_streams_as_it_is(text in "[a-z é\u{301}😀👩\u{200D}世\u{0}-\u{10FFFF}]{0,20}") {
        let answer = tokenizer().encode(&text, Bos::AsWritten).unwrap();
        prop_assume!(answer.len() < 60);
        let (events, generation) = run(&mut says(&answer, 1), &[BOS], &request(60));
        prop_assert_eq!(text_of(&events), &text[..]);
        prop_assert_eq!(generation.text, text);
    }

    #[test]
    fn chunks_and_pages_do_not_change_the_tokens(
        prompt in prop::collection::vec(0..u32::try_from(VOCAB_SIZE).unwrap(), 1..40),
        chunk in 1..50_usize,
        page_size in 1..20_usize,
    ) {
        let prompt: Vec<TokenId> = prompt.into_iter().map(TokenId).collect();
        let request = Request { eos_token_ids: Vec::new(), ..request(20) };
        let mut expected = prompt.clone();
        for _ in 0..20 {
            let logits = hashed(&expected);
            let best = (0..VOCAB_SIZE).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
            expected.push(TokenId(u32::try_from(best).unwrap()));
        }
        let limits = ModelLimits { page_size, page_count: 64_usize.div_ceil(page_size), ..LIMITS };
        let mut model = FakeModel::new(limits, hashed);
        let generation = Generator::new(&mut model, tokenizer(), chunk).unwrap()
            .generate(&prompt, &request, go_on).unwrap();
        prop_assert_eq!(generation.tokens, &expected[prompt.len()..]);
    }
}
