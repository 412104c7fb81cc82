//! Whatever comes and goes: every answer that ends is the one that the request would have got alone, and no page is lost.

use proptest::prelude::*;

use super::*;
use crate::TokenLogprobs;

#[derive(Clone, Debug)]
enum Operation {
    Submit { submission: Box<Submission>, patience: Option<usize> },
    Step(usize),
    Cancel(usize),
}

/// Prompts that begin alike more often than not.
fn prompt() -> impl Strategy<Value = Vec<TokenId>> {
    let own = prop::collection::vec(200..VOCAB_SIZE as u32, 0..6);
    (0..3_u32, 0..20_u32, own).prop_map(|(family, shared, own)| {
        let shared = ids(family * 20..family * 20 + shared);
        shared.into_iter().chain([TokenId(150)]).chain(own.into_iter().map(TokenId)).collect()
    })
}

fn operation() -> impl Strategy<Value = Operation> {
    let sampling = prop_oneof![
        2 => Just(SamplingParams::GREEDY),
        1 => any::<u64>().prop_map(|seed| SamplingParams::new(1.0, 20, 0.9, seed).unwrap()),
    ];
    let submit = (
        prompt(),
        0..24_usize,
        1..4_usize,
        sampling,
        prop::option::weighted(0.2, 0..10_usize),
        prop::option::weighted(0.2, 0..3_usize),
    );
    let submit = submit.prop_map(|(prompt, max_new_tokens, choices, sampling, patience, prompt_logprobs)| {
        let request = Request { sampling, choices, prompt_logprobs, ..request(max_new_tokens) };
        Operation::Submit { submission: Box::new(Submission { prompt: prompt.into(), request }), patience }
    });
    prop_oneof![
        3 => submit,
        3 => (1..12_usize).prop_map(Operation::Step),
        1 => (0..20_usize).prop_map(Operation::Cancel),
    ]
}

/// Those that a request asks for.
fn prompt_logprobs(submission: &Submission) -> Vec<Option<TokenLogprobs>> {
    let Submission { prompt, request } = submission;
    let Some(count) = request.prompt_logprobs else { return Vec::new() };
    let of =
        |position: usize| TokenLogprobs::of(&hashed(&prompt[..position]), prompt[position], count).unwrap();
    std::iter::once(None).chain((1..prompt.len()).map(|position| Some(of(position)))).collect()
}

proptest! {
    #[test]
    fn all_get_what_they_would_get_alone(
        operations in prop::collection::vec(operation(), 1..30),
        (page_count, page_size, rows) in (8..20_usize, 3..6_usize, 1..3_usize),
        (prefill_chunk, sequences) in (1..12_usize, 3..8_usize),
        reuse in prop_oneof![Just(Reuse::Off), Just(Reuse::Prompts), Just(Reuse::All)],
    ) {
        let limits = ModelLimits { page_count, page_size, rows, max_context: 48, ..LIMITS };
        let config = EngineConfig { queue: 8, sequences, prefill_chunk, reuse, ..CONFIG };
        let mut engine = engine(limits, config);
        let mut requests = Vec::new();
        for operation in operations {
            match operation {
                Operation::Submit { submission, patience } => {
                    match submit(&mut engine, (*submission).clone(), patience) {
                        Ok((id, answer)) => requests.push((id, submission, answer)),
                        Err(Error::QueueFull { .. }) => {}
                        Err(Error::PromptTooLong { prompt, context }) => prop_assert!(prompt > context),
                        Err(other) => return Err(TestCaseError::fail(other.to_string())),
                    }
                }
                Operation::Step(steps) => {
                    for _ in 0..steps {
                        engine.step().unwrap();
                    }
                }
                Operation::Cancel(index) => {
                    if let Some((id, ..)) = requests.get(index) {
                        engine.cancel(*id);
                    }
                }
            }
            let pages = engine.snapshot().pages;
            prop_assert_eq!(pages.held + pages.kept + pages.free, rows * page_count);
        }
        let mut steps = 0;
        while !engine.is_idle() {
            engine.step().unwrap();
            steps += 1;
            prop_assert!(steps < 20_000, "it does not end");
        }
        prop_assert_eq!(engine.snapshot().pages.held, 0);
        for (_, submission, answer) in requests {
            let answer = answer.lock().unwrap();
            let expected = alone(&submission, limits.context());
            if answer.is_complete() {
                prop_assert_eq!(&answer.tokens, &expected);
                prop_assert_eq!(&answer.prompt_logprobs, &prompt_logprobs(&submission));
            }
            for (tokens, expected) in answer.tokens.iter().zip(&expected) {
                prop_assert!(expected.starts_with(tokens));
            }
        }
    }
}
