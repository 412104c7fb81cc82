//! What a request gets: choices, log probabilities, forms, ends and errors.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::*;
use crate::testing::one_hot;
use crate::{Bos, Constraint, Penalties, TokenLogprobs};

#[test]
fn choices_share_the_prompt_and_draw_for_themselves() {
    for prompt_len in [7, 8, 9, 1] {
        let mut engine = engine(LIMITS, CONFIG);
        let sampling = SamplingParams::new(1.0, 0, 1.0, 9).unwrap();
        let request = Request { choices: 5, sampling, ..request(6) };
        let submission = Submission { prompt: ids(0..prompt_len).into(), request };
        let (_, answer) = submit(&mut engine, submission.clone(), None).unwrap();
        engine.step().unwrap();
        if prompt_len == 8 {
            // Two pages of the prompt, and one each to go on.
            assert_eq!(engine.snapshot().pages.held, 2 + 5);
        }
        run(&mut engine);
        let answer = answer.lock().unwrap();
        let chunks = prompt_len.div_ceil(8) as usize;
        assert_eq!((answer.tokens.clone(), engine.model().prefills.len()), (alone(&submission, 64), chunks));
        assert_eq!(answer.usage.unwrap().completion_tokens, 5 * 6);
    }
}

#[test]
fn choices_for_which_there_are_no_pages_run_the_prompt_for_themselves() {
    let limits = ModelLimits { page_count: 5, max_context: 20, ..LIMITS };
    let mut engine = engine(limits, EngineConfig { reuse: Reuse::Off, ..CONFIG });
    let request =
        Request { choices: 4, sampling: SamplingParams::new(1.0, 0, 1.0, 9).unwrap(), ..request(9) };
    let submission = Submission { prompt: ids(0..10).into(), request };
    let (_, answer) = submit(&mut engine, submission.clone(), None).unwrap();
    run(&mut engine);
    assert_eq!(answer.lock().unwrap().tokens, alone(&submission, 20));
}

#[test]
fn a_request_that_its_caller_ends_is_gone_within_a_step() {
    let mut engine = engine(LIMITS, CONFIG);
    let (_, breaks) = submit(&mut engine, submission(ids(0..6), 40), Some(3)).unwrap();
    let (id, cancelled) = submit(&mut engine, submission(ids(0..6), 40), None).unwrap();
    let (waits, never_began) = submit(&mut engine, submission(ids(0..6), 40), None).unwrap();
    engine.cancel(waits);
    for _ in 0..6 {
        engine.step().unwrap();
    }
    assert_eq!(engine.clients.len(), 1, "one broke after its third token");
    assert_eq!(breaks.lock().unwrap().tokens[0].len(), 3);
    assert!(breaks.lock().unwrap().usage.is_none(), "nobody is told any more");
    let made = cancelled.lock().unwrap().tokens[0].len();
    engine.cancel(id);
    engine.cancel(id);
    assert!(engine.is_idle());
    assert_eq!(engine.snapshot().pages.held, 0);
    let cancelled = cancelled.lock().unwrap();
    assert_eq!(cancelled.finishes, [Some(Finish::Cancelled)]);
    assert_eq!(cancelled.usage.unwrap().completion_tokens, made);
    assert_eq!(never_began.lock().unwrap().finishes, [Some(Finish::Cancelled)]);
    assert_eq!(engine.snapshot().cancelled, 3);
}

#[test]
fn the_context_ends_an_answer_and_no_request() {
    let mut engine = engine(LIMITS, CONFIG);
    let (_, long) = submit(&mut engine, submission(ids(0..60), usize::MAX), None).unwrap();
    let (_, full) = submit(&mut engine, submission(ids(0..64), 5), None).unwrap();
    let (_, none) = submit(&mut engine, submission(ids(0..5), 0), None).unwrap();
    run(&mut engine);
    assert_eq!(long.lock().unwrap().tokens[0].len(), 4);
    assert_eq!(long.lock().unwrap().finishes, [Some(Finish::ContextEnd)]);
    assert_eq!(full.lock().unwrap().finishes, [Some(Finish::ContextEnd)]);
    assert_eq!(none.lock().unwrap().finishes, [Some(Finish::MaxNewTokens)]);
    assert_eq!(engine.snapshot().generated_tokens, 4);
}

#[test]
fn the_prompts_own_log_probabilities_come_where_they_are_asked_for() {
    let mut engine = engine(LIMITS, CONFIG);
    let prompt = ids(0..21);
    for max_new_tokens in [0, 2] {
        let request = Request { prompt_logprobs: Some(2), logprobs: Some(0), ..request(max_new_tokens) };
        let (_, answer) =
            submit(&mut engine, Submission { prompt: prompt.clone().into(), request }, None).unwrap();
        run(&mut engine);
        let answer = answer.lock().unwrap();
        assert_eq!((answer.prompt_logprobs.len(), answer.prompt_logprobs[0].clone()), (21, None));
        for position in 1..21 {
            let expected = TokenLogprobs::of(&hashed(&prompt[..position]), prompt[position], 2).unwrap();
            assert_eq!(answer.prompt_logprobs[position], Some(expected));
        }
        assert_eq!(answer.tokens[0].len(), max_new_tokens);
        assert_eq!(answer.cached, Some(0), "all of it is run");
    }
}

#[test]
fn biases_and_penalties_change_what_is_chosen() {
    let mut engine = engine(LIMITS, CONFIG);
    let penalties = Penalties { presence: 2.0, frequency: 2.0, ..Penalties::NONE };
    let sampling = SamplingParams::GREEDY.with_penalties(penalties).unwrap();
    let bias = vec![(TokenId(7), 2.5), (TokenId(8), 2.5)];
    let request = Request { sampling, logit_bias: bias, ..request(8) };
    let (_, answer) = submit(&mut engine, Submission { prompt: ids(0..3).into(), request }, None).unwrap();
    run(&mut engine);
    let tokens = answer.lock().unwrap().tokens[0].clone();
    // Logits are below 4: a bias of 2.5 decides once or twice, then a penalty of 4 takes it away.
    assert!(tokens[..2].contains(&TokenId(7)) || tokens[..2].contains(&TokenId(8)), "{tokens:?}");
    assert!(tokens.iter().filter(|token| [7, 8].contains(&token.0)).count() <= 4, "{tokens:?}");
}

#[test]
fn an_answer_keeps_the_form_that_was_asked_for() {
    let schema = json!({
        "type": "object", "additionalProperties": false, "required": ["name", "age"],
        "properties": {"name": {"enum": ["Ann", "Bob"]}, "age": {"type": "integer", "minimum": 10, "maximum": 99}},
    });
    let constraints = [
        Constraint::JsonSchema(schema),
        Constraint::Regex("[0-9]{3}-[a-f]{2}".to_owned()),
        Constraint::Lark("start: \"yes\" | \"no\"".to_owned()),
    ];
    for sampling in [SamplingParams::GREEDY, SamplingParams::new(1.5, 0, 1.0, 5).unwrap()] {
        for constraint in &constraints {
            let mut engine = engine(LIMITS, CONFIG);
            let request =
                Request { sampling, constraint: Some(constraint.clone()), choices: 3, ..request(60) };
            let prompt = tokenizer().encode("?", Bos::AsWritten).unwrap();
            let (_, answer) =
                submit(&mut engine, Submission { prompt: prompt.into(), request }, None).unwrap();
            run(&mut engine);
            let answer = answer.lock().unwrap();
            for (text, finish) in answer.texts.iter().zip(&answer.finishes) {
                if *finish == Some(Finish::MaxNewTokens) {
                    continue; // white space may go on for ever
                }
                assert_eq!(*finish, Some(Finish::GrammarEnd), "{text:?}");
                match constraint {
                    Constraint::JsonSchema(_) => {
                        let value: Value = serde_json::from_str(text).unwrap();
                        assert!(value["age"].as_u64().is_some_and(|age| (10..100).contains(&age)), "{text}");
                    }
                    Constraint::Regex(_) => assert!(text.len() == 6 && text.as_bytes()[3] == b'-', "{text}"),
                    _ => assert!(text == "yes" || text == "no", "{text}"),
                }
            }
        }
    }
}

#[test]
fn a_form_that_is_none_is_refused_by_name() {
    let mut engine = engine(LIMITS, CONFIG);
    let mut refused = |constraint| {
        let request = Request { constraint: Some(constraint), ..request(5) };
        submit(&mut engine, Submission { prompt: ids(0..3).into(), request }, None).unwrap_err().to_string()
    };
    let error = refused(Constraint::JsonSchema(json!({"type": "nonsense"})));
    assert!(error.starts_with("json_schema: ") && !error.contains('\n'), "{error}");
    assert!(refused(Constraint::Regex("(".to_owned())).starts_with("regex: "));
    assert!(refused(Constraint::Lark("start: nothing".to_owned())).starts_with("grammar: "));
}

#[test]
fn a_logit_that_is_no_number_ends_its_request_and_no_other() {
    let next = |tokens: &[TokenId]| {
        if tokens[0] == TokenId(9) && tokens.len() > 5 { vec![f32::NAN; VOCAB_SIZE] } else { hashed(tokens) }
    };
    let mut engine = Engine::new(FakeModel::new(LIMITS, next), Arc::clone(tokenizer()), CONFIG).unwrap();
    let (_, bad) = submit(&mut engine, submission(ids(9..12), 20), None).unwrap();
    let (_, worse) = submit(&mut engine, submission(ids(9..19), 20), None).unwrap();
    let (_, good) = submit(&mut engine, submission(ids(0..3), 20), None).unwrap();
    run(&mut engine);
    for answer in [bad, worse] {
        assert_eq!(answer.lock().unwrap().failure.as_deref(), Some("the model's logit of token 0 is NaN"));
    }
    assert_eq!(good.lock().unwrap().tokens, alone(&submission(ids(0..3), 20), 64));
    assert_eq!((engine.snapshot().failed, engine.snapshot().finished), (2, 1));
}

/// Fails from some time on.
pub(super) struct Failing(pub(super) Hashed, pub(super) Arc<AtomicBool>);

impl LanguageModel for Failing {
    fn limits(&self) -> ModelLimits {
        self.0.limits()
    }

    fn forward_prefill(
        &mut self,
        tokens: &[TokenId],
        step: &dsv3_runtime::PrefillStep<'_>,
    ) -> Result<dsv3_runtime::Tensor, dsv3_runtime::Error> {
        self.0.forward_prefill(tokens, step)
    }

    fn forward_decode(
        &mut self,
        tokens: &[TokenId],
        step: &dsv3_runtime::DecodeStep<'_>,
    ) -> Result<dsv3_runtime::Tensor, dsv3_runtime::Error> {
        if self.1.load(Ordering::Relaxed) {
            return Err(dsv3_runtime::Error::Request("no more".to_owned()));
        }
        self.0.forward_decode(tokens, step)
    }

    fn copy_page(
        &mut self,
        row: usize,
        from: dsv3_runtime::PageId,
        to: dsv3_runtime::PageId,
    ) -> Result<(), dsv3_runtime::Error> {
        self.0.copy_page(row, from, to)
    }
}

#[test]
fn a_model_that_fails_ends_all_requests() {
    let fails = Arc::new(AtomicBool::new(false));
    let model = Failing(model(LIMITS), Arc::clone(&fails));
    let mut engine = Engine::new(model, Arc::clone(tokenizer()), CONFIG).unwrap();
    let answers: Vec<_> =
        (0..3).map(|_| submit(&mut engine, submission(ids(0..4), 50), None).unwrap().1).collect();
    engine.step().unwrap();
    fails.store(true, Ordering::Relaxed);
    assert_eq!(engine.step().unwrap_err().to_string(), "no more");
    assert!(engine.is_idle());
    assert_eq!(engine.snapshot().pages.held, 0);
    for answer in answers {
        assert_eq!(answer.lock().unwrap().failure.as_deref(), Some("the engine has failed: no more"));
    }
}

#[test]
fn no_step_is_run_for_an_answer_that_has_ended() {
    let next = |tokens: &[TokenId]| one_hot(TokenId(if tokens.len() < 6 { 50 } else { 1 }));
    let mut engine = Engine::new(FakeModel::new(LIMITS, next), Arc::clone(tokenizer()), CONFIG).unwrap();
    let request = Request { eos_token_ids: vec![TokenId(1)], ..request(40) };
    let (_, answer) = submit(&mut engine, Submission { prompt: ids(10..13).into(), request }, None).unwrap();
    run(&mut engine);
    assert_eq!(answer.lock().unwrap().finishes, [Some(Finish::EndOfSequence(TokenId(1)))]);
    assert_eq!(answer.lock().unwrap().tokens[0].len(), 3);
    assert_eq!(engine.model().decodes, 3);
}
