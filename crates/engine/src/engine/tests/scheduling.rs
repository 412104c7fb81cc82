//! Who runs when, on which pages.

use super::*;

#[test]
fn a_short_prompt_does_not_wait_for_a_long_one_and_the_long_one_is_not_forgotten() {
    let limits = ModelLimits { max_context: 1024, page_count: 1024, ..LIMITS };
    let mut engine = engine(limits, EngineConfig { reuse: Reuse::Off, ..CONFIG });
    let (_, long) = submit(&mut engine, submission(ids(0..270), 1), None).unwrap();
    engine.step().unwrap();
    let (_, short) = submit(&mut engine, submission(ids(100..108), 2), None).unwrap();
    assert_eq!(engine.step().unwrap().prefilled, 8);
    assert_eq!(short.lock().unwrap().tokens[0].len(), 2, "its chunk is the next one");
    // Short ones that never end to come, as many as there are chunks for beside its own.
    let mut chunks_of_long = 0;
    for round in 0..150 {
        if round % 4 < 3 {
            submit(&mut engine, submission(ids(round..round + 8), 1), None).unwrap();
        }
        engine.step().unwrap();
        let starts = &engine.model().prefills;
        chunks_of_long = starts.iter().filter(|(start, ..)| *start > 0).count();
        if long.lock().unwrap().usage.is_some() {
            break;
        }
    }
    assert_eq!(chunks_of_long, 33, "one of four chunks is its");
    assert!(long.lock().unwrap().is_complete());
}

#[test]
fn many_long_prompts_hold_up_neither_a_short_one_nor_each_other() {
    let limits = ModelLimits { max_context: 1024, page_count: 1024, ..LIMITS };
    let mut engine = engine(limits, EngineConfig { reuse: Reuse::Off, ..CONFIG });
    let longs: Vec<_> =
        (0..6).map(|n| submit(&mut engine, submission(ids(n..n + 240), 1), None).unwrap().1).collect();
    for _ in 0..30 {
        engine.step().unwrap();
    }
    let (_, short) = submit(&mut engine, submission(ids(100..116), 1), None).unwrap();
    // Its two chunks, and one of a prompt that has waited longest.
    for _ in 0..3 {
        engine.step().unwrap();
    }
    assert!(short.lock().unwrap().is_complete());
    let cached = |engine: &Engine<Hashed>| {
        let of = |task: &Task| (task.client, task.sequence.cached());
        engine.running.iter().map(of).collect::<BTreeMap<_, _>>()
    };
    // One of four chunks goes round among six.
    let before = cached(&engine);
    for _ in 0..4 * 6 {
        engine.step().unwrap();
    }
    let after = cached(&engine);
    assert_eq!(before.len(), 6);
    assert!(before.iter().all(|(id, cached)| after.get(id).is_none_or(|now| now > cached)), "{after:?}");
    run(&mut engine);
    assert!(longs.iter().all(|long| long.lock().unwrap().is_complete()));
}

#[test]
fn decode_goes_on_beside_a_long_prompt() {
    let limits = ModelLimits { max_context: 512, page_count: 256, ..LIMITS };
    let mut engine = engine(limits, CONFIG);
    let (_, talker) = submit(&mut engine, submission(ids(0..4), 100), None).unwrap();
    engine.step().unwrap();
    submit(&mut engine, submission(ids(100..260), 1), None).unwrap();
    for step in 0..20 {
        let before = talker.lock().unwrap().tokens[0].len();
        let report = engine.step().unwrap();
        assert_eq!((report.prefilled, report.decoded), (8, 1), "step {step}");
        assert_eq!(talker.lock().unwrap().tokens[0].len(), before + 1);
    }
    run(&mut engine);
}

#[test]
fn sequences_decode_together() {
    let mut engine = engine(LIMITS, CONFIG);
    let requests: Vec<_> = (0..8_u32).map(|n| submission(ids(10 * n..10 * n + 5), 10)).collect();
    let answers: Vec<_> =
        requests.iter().map(|request| submit(&mut engine, request.clone(), None).unwrap().1).collect();
    run(&mut engine);
    // Eight steps have a prompt each, and the last to begin needs nine more after its own.
    assert_eq!(engine.model().decodes, 8 + 9 - 1);
    assert_eq!(engine.snapshot().decode_batch.max(), 8.0);
    for (request, answer) in requests.iter().zip(answers) {
        assert_eq!(answer.lock().unwrap().tokens, alone(request, 64));
    }
}

#[test]
fn a_full_queue_refuses_and_what_can_never_run_is_refused_at_once() {
    let mut engine = engine(LIMITS, EngineConfig { queue: 2, ..CONFIG });
    for _ in 0..2 {
        submit(&mut engine, submission(ids(0..4), 4), None).unwrap();
    }
    let error = submit(&mut engine, submission(ids(0..4), 4), None).unwrap_err();
    assert!(matches!(error, Error::QueueFull { waiting: 2, limit: 2 }), "{error}");
    assert_eq!(engine.snapshot().refused, 1);
    let mut refused = |submission| submit(&mut engine, submission, None).unwrap_err().to_string();
    assert_eq!(refused(submission(ids(0..65), 4)), "the prompt has 65 tokens, but the context holds 64");
    assert_eq!(refused(submission(Vec::new(), 4)), "the prompt is empty: there is nothing to continue");
    let many = Request { choices: 17, ..request(4) };
    let error = refused(Submission { prompt: ids(0..4).into(), request: many });
    assert_eq!(error, "n is 17, but must be no more than sequences that may run at once");
    engine.step().unwrap();
    submit(&mut engine, submission(ids(0..4), 4), None).unwrap();
    run(&mut engine);
    assert_eq!(engine.snapshot().finished, 3);
}

#[test]
fn requests_begin_in_their_order_however_large() {
    // Ten pages; the second request needs eight of them, and waits for the first.
    let limits = ModelLimits { page_count: 10, ..LIMITS };
    let mut engine = engine(limits, CONFIG);
    let (_, first) = submit(&mut engine, submission(ids(0..12), 8), None).unwrap();
    let (_, large) = submit(&mut engine, submission(ids(100..130), 2), None).unwrap();
    let (_, small) = submit(&mut engine, submission(ids(0..3), 1), None).unwrap();
    while first.lock().unwrap().usage.is_none() {
        engine.step().unwrap();
        assert!(small.lock().unwrap().cached.is_none() || large.lock().unwrap().cached.is_some());
    }
    run(&mut engine);
    assert!(small.lock().unwrap().is_complete() && large.lock().unwrap().is_complete());
    assert_eq!(engine.snapshot().preemptions, 0);
}

#[test]
fn a_sequence_that_loses_its_pages_goes_on_where_it_was() {
    let limits = ModelLimits { page_count: 12, ..LIMITS };
    for reuse in [Reuse::Off, Reuse::Prompts, Reuse::All] {
        let mut engine = engine(limits, EngineConfig { reuse, ..CONFIG });
        let sampling = SamplingParams::new(1.0, 0, 0.95, 3).unwrap();
        let requests: Vec<_> = (0..4_u32)
            .map(|n| Submission {
                prompt: ids(20 * n..20 * n + 6).into(),
                request: Request { sampling, ..request(20 + n as usize) },
            })
            .collect();
        let answers: Vec<_> =
            requests.iter().map(|request| submit(&mut engine, request.clone(), None).unwrap().1).collect();
        run(&mut engine);
        assert!(engine.snapshot().preemptions > 0, "12 pages are too few for four sequences of seven");
        for (request, answer) in requests.iter().zip(answers) {
            assert_eq!(answer.lock().unwrap().tokens, alone(request, 48), "{reuse:?}");
        }
    }
}

#[test]
fn a_prefix_is_run_once() {
    let mut engine = engine(LIMITS, CONFIG);
    let long: Vec<_> = ids(0..23);
    let cached = |engine: &mut Engine<Hashed>, submission: Submission| {
        let (_, answer) = submit(engine, submission.clone(), None).unwrap();
        run(engine);
        let answer = answer.lock().unwrap();
        assert_eq!(answer.tokens, alone(&submission, 64));
        assert_eq!(answer.usage.unwrap().cached_tokens, answer.cached.unwrap());
        answer.cached.unwrap()
    };
    assert_eq!(cached(&mut engine, submission(long.clone(), 4)), 0);
    // Of 23 tokens 5 pages are whole.
    assert_eq!(cached(&mut engine, submission(long.clone(), 4)), 20);
    let salted = Request { cache_salt: "mine".to_owned(), ..request(4) };
    assert_eq!(cached(&mut engine, Submission { prompt: long.clone().into(), request: salted }), 0);
    // The last token is always run: its logits are needed.
    assert_eq!(cached(&mut engine, submission(long[..20].to_vec(), 4)), 16);
    let mut other = long.clone();
    other[9] = TokenId(200);
    assert_eq!(cached(&mut engine, submission(other, 4)), 8);
    let tokens = engine.snapshot();
    assert_eq!((tokens.prompt_tokens, tokens.cached_tokens), (23 * 4 + 20, 20 + 16 + 8));
}

#[test]
fn an_answer_is_found_again_only_where_that_is_asked_for() {
    for (reuse, expected) in [(Reuse::Off, 0), (Reuse::Prompts, 8), (Reuse::All, 20)] {
        let mut engine = engine(LIMITS, EngineConfig { reuse, ..CONFIG });
        let (_, answer) = submit(&mut engine, submission(ids(0..8), 14), None).unwrap();
        run(&mut engine);
        let turn = [ids(0..8), answer.lock().unwrap().tokens[0].clone(), ids(50..55)].concat();
        let next = submission(turn, 3);
        let (_, answer) = submit(&mut engine, next.clone(), None).unwrap();
        run(&mut engine);
        assert_eq!(answer.lock().unwrap().cached, Some(expected), "{reuse:?}");
        assert_eq!(answer.lock().unwrap().tokens, alone(&next, 64));
    }
}

#[test]
fn what_was_used_last_stays_longest() {
    let limits = ModelLimits { page_count: 8, ..LIMITS };
    let mut engine = engine(limits, CONFIG);
    let mut cached = |first: u32| {
        let (_, answer) = submit(&mut engine, submission(ids(first..first + 9), 1), None).unwrap();
        run(&mut engine);
        answer.lock().unwrap().cached.unwrap()
    };
    // Each takes three pages and leaves two; eight hold three of them, and the fourth needs the oldest one's.
    assert_eq!([0, 20, 40, 0].map(&mut cached), [0, 0, 0, 8]);
    assert_eq!(cached(60), 0);
    assert_eq!(cached(0), 8);
    assert_eq!(cached(20), 4, "of the oldest the last page has made place");
    assert!(engine.snapshot().pages.evicted > 0);
}

#[test]
fn a_sequence_goes_to_the_row_that_has_its_prefix_and_else_to_the_emptiest() {
    let limits = ModelLimits { rows: 2, page_count: 16, ..LIMITS };
    let mut engine = engine(limits, CONFIG);
    let (_, first) = submit(&mut engine, submission(ids(0..9), 30), None).unwrap();
    let (_, second) = submit(&mut engine, submission(ids(100..109), 30), None).unwrap();
    engine.step().unwrap();
    assert_eq!([0, 1].map(|index: usize| engine.running[index].sequence.pages.row()), [0, 1]);
    run(&mut engine);
    let (_, again) = submit(&mut engine, submission(ids(100..112), 30), None).unwrap();
    engine.step().unwrap();
    assert_eq!(engine.running[0].sequence.pages.row(), 1);
    run(&mut engine);
    assert_eq!(again.lock().unwrap().cached, Some(8));
    assert_eq!(first.lock().unwrap().tokens, alone(&submission(ids(0..9), 30), 64));
    assert_eq!(second.lock().unwrap().tokens, alone(&submission(ids(100..109), 30), 64));
}

#[test]
fn a_beginning_that_all_have_does_not_bring_all_to_one_row() {
    let limits = ModelLimits { rows: 4, page_count: 256, ..LIMITS };
    for rows_apart in [0, 1, 4] {
        let mut engine = engine(limits, EngineConfig { sequences: 64, rows_apart, ..CONFIG });
        let loads = |engine: &Engine<Hashed>| {
            let on = |row| engine.running.iter().filter(|task| task.sequence.pages.row() == row).count();
            [0, 1, 2, 3].map(on)
        };
        let (system, mut widest, mut answers) = (ids(0..17), 0, Vec::new());
        for n in 0..40 {
            let request = submission([&system[..], &ids(100 + n..103 + n)].concat(), 40);
            let answer = submit(&mut engine, request.clone(), None).unwrap().1;
            answers.push((request, answer));
            let before = loads(&engine);
            engine.admit();
            let row = engine.running.last().unwrap().sequence.pages.row();
            let ahead = before[row] - before.iter().min().unwrap();
            assert!(ahead == 0 || ahead < rows_apart, "{before:?}: row {row}");
            widest = widest.max(ahead);
            while engine.snapshot().prefilling > 0 {
                engine.step().unwrap();
            }
        }
        assert_eq!(
            widest,
            rows_apart.saturating_sub(1),
            "as far as it may, it goes where the beginning is cached"
        );
        run(&mut engine);
        for (request, answer) in answers {
            assert_eq!(answer.lock().unwrap().tokens, alone(&request, 64));
        }
        assert_eq!(engine.snapshot().cached_tokens, (40 - 4) * 16, "each row runs the beginning once");
    }
}

#[test]
fn choices_that_are_to_begin_count_for_their_row() {
    let limits = ModelLimits { rows: 2, page_count: 64, ..LIMITS };
    let mut engine = engine(limits, EngineConfig { rows_apart: 2, ..CONFIG });
    let many = Request { choices: 6, ..request(20) };
    submit(&mut engine, Submission { prompt: ids(0..9).into(), request: many }, None).unwrap();
    submit(&mut engine, submission(ids(0..10), 20), None).unwrap();
    engine.admit();
    assert_eq!([0, 1].map(|index: usize| engine.running[index].sequence.pages.row()), [0, 1]);
    run(&mut engine);
}

#[test]
fn a_prompt_that_waits_is_there_once() {
    let mut engine = engine(LIMITS, EngineConfig { sequences: 8, ..CONFIG });
    submit(&mut engine, submission(ids(50..60), 30), None).unwrap();
    engine.step().unwrap();
    let request = Request { choices: 8, ..request(4) };
    let prompt: Arc<[TokenId]> = ids(0..40).into();
    let submission = Submission { prompt: Arc::clone(&prompt), request };
    let (_, answer) = submit(&mut engine, submission.clone(), None).unwrap();
    engine.step().unwrap();
    let [task] = engine.waiting.iter().collect::<Vec<_>>()[..] else { panic!("it has no place to run") };
    assert_eq!((task.sequence.tokens().as_ptr(), task.choices()), (prompt.as_ptr(), 0..8));
    // Here, in the submission, in the first choice, and in what the others begin with.
    assert_eq!(Arc::strong_count(&prompt), 4);
    run(&mut engine);
    assert_eq!(answer.lock().unwrap().tokens, alone(&submission, 64));
    assert_eq!(Arc::strong_count(&prompt), 2);
}
