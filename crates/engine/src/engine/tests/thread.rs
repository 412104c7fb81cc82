//! The engine on its thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use super::answers::Failing;
use super::*;
use crate::Constraint;

fn start(config: EngineConfig) -> EngineThread {
    let open = || Ok::<_, Error>(model(LIMITS));
    EngineThread::start(Arc::clone(tokenizer()), config, open).unwrap()
}

fn send(handle: &EngineHandle, submission: Submission) -> Result<(Ticket, Receiver<StreamEvent>), Error> {
    let (sender, receiver) = mpsc::channel();
    let sink = move |event| match sender.send(event) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    };
    Ok((handle.submit(submission, sink)?, receiver))
}

fn tokens(receiver: &Receiver<StreamEvent>) -> Vec<TokenId> {
    let token = |event| match event {
        StreamEvent::Token { event, .. } => event.token.map(|token| token.token),
        _ => None,
    };
    receiver.iter().filter_map(token).collect()
}

fn wait_until(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "it does not come");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn many_threads_are_served_and_each_gets_its_own() {
    let engine = start(CONFIG);
    thread::scope(|scope| {
        for client in 0..8_u32 {
            let handle = engine.handle();
            scope.spawn(move || {
                for round in 0..10 {
                    let submission = submission(ids(client * 9..client * 9 + 3 + round), 20);
                    let (_ticket, events) = send(&handle, submission.clone()).unwrap();
                    assert_eq!(tokens(&events), alone(&submission, 64)[0]);
                }
            });
        }
    });
    let handle = engine.handle();
    wait_until(|| handle.snapshot().finished == 80);
    assert_eq!(handle.snapshot().pages.held, 0);
    assert_eq!(handle.limits(), LIMITS);
    engine.shutdown(true);
    assert_eq!(handle.health(), Health::ShuttingDown);
    assert!(matches!(send(&handle, submission(ids(0..3), 1)), Err(Error::ShuttingDown)));
}

#[test]
fn a_dropped_ticket_cancels_and_a_detached_one_does_not() {
    let engine = start(CONFIG);
    let handle = engine.handle();
    let (ticket, events) = send(&handle, submission(ids(0..3), 60)).unwrap();
    drop(ticket);
    let made = tokens(&events).len();
    wait_until(|| handle.snapshot().cancelled + handle.snapshot().finished == 1);
    assert!(made <= 60);
    let (ticket, events) = send(&handle, submission(ids(0..3), 30)).unwrap();
    ticket.detach();
    assert_eq!(tokens(&events).len(), 30);
}

#[test]
fn shutting_down_finishes_or_cancels_what_is_there() {
    for drain in [true, false] {
        let engine = start(CONFIG);
        let handle = engine.handle();
        let requests: Vec<_> = (0..6).map(|_| send(&handle, submission(ids(0..3), 60)).unwrap()).collect();
        engine.shutdown(drain);
        for (_ticket, events) in requests {
            let events: Vec<_> = events.iter().collect();
            let finish = events.iter().rev().find_map(|event| match event {
                StreamEvent::Token { event, .. } => event.finish.clone(),
                _ => None,
            });
            assert!(matches!(events.last(), Some(StreamEvent::Done(_))));
            assert!(!drain || finish == Some(Finish::MaxNewTokens), "{finish:?}");
        }
    }
}

#[test]
fn a_full_queue_refuses_until_a_request_begins() {
    let engine = start(EngineConfig { queue: 1, sequences: 1, ..CONFIG });
    let handle = engine.handle();
    let mut held = Vec::new();
    let error = loop {
        match send(&handle, submission(ids(0..3), 60)) {
            Ok(request) => held.push(request),
            Err(error) => break error,
        }
        assert!(held.len() < 10_000, "one that runs and one that waits are all there is room for");
    };
    assert!(matches!(error, Error::QueueFull { waiting: 1, limit: 1 }), "{error}");
    assert_eq!(handle.snapshot().refused, 1);
    drop(held);
    wait_until(|| {
        send(&handle, submission(ids(0..3), 1)).is_ok_and(|(_ticket, events)| tokens(&events).len() == 1)
    });
}

#[test]
fn a_model_that_fails_is_reported_to_all_and_for_good() {
    let fails = Arc::new(AtomicBool::new(false));
    let model = {
        let fails = Arc::clone(&fails);
        move || Ok::<_, Error>(Failing(model(LIMITS), fails))
    };
    let directory = tempfile::tempdir().unwrap();
    let state = CacheState { directory: directory.path().to_owned(), fingerprint: "a model".to_owned() };
    let config = EngineConfig { cache_state: Some(state), ..CONFIG };
    let engine = EngineThread::start(Arc::clone(tokenizer()), config, model).unwrap();
    let handle = engine.handle();
    let (_ticket, events) = send(&handle, submission(ids(0..9), 1)).unwrap();
    assert_eq!(tokens(&events).len(), 1);
    fails.store(true, Ordering::Relaxed);
    let (_ticket, events) = send(&handle, submission(ids(0..3), 60)).unwrap();
    let last = events.iter().last().unwrap();
    assert!(
        matches!(&last, StreamEvent::Failed(error) if error.to_string() == "the engine has failed: no more")
    );
    wait_until(|| handle.health() == Health::Failed("no more".to_owned()));
    let error = send(&handle, submission(ids(0..3), 60)).err().unwrap();
    assert_eq!(error.to_string(), "the engine has failed: no more");
    assert!(engine.shutdown(true).is_none(), "its cache is not saved");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_model_that_does_not_open_is_no_engine() {
    let open = || Err::<Hashed, _>(Error::NoToken);
    let error = EngineThread::start(Arc::clone(tokenizer()), CONFIG, open).err().unwrap();
    assert!(matches!(error, Error::NoToken), "{error}");
    let open = || Ok::<_, Error>(model(LIMITS));
    let config = EngineConfig { sequences: 0, ..CONFIG };
    let error = EngineThread::start(Arc::clone(tokenizer()), config, open).err().unwrap();
    assert_eq!(error.to_string(), "sequences is 0, but must be at least 1");
}

#[test]
fn a_restart_finds_what_was_run_before() {
    let directory = tempfile::tempdir().unwrap();
    let state = CacheState { directory: directory.path().to_owned(), fingerprint: "a model".to_owned() };
    let config = EngineConfig { cache_state: Some(state.clone()), ..CONFIG };
    let request = submission(ids(0..23), 10);
    let answer = |engine: &EngineThread| {
        let (_ticket, events) = send(&engine.handle(), request.clone()).unwrap();
        let events: Vec<_> = events.iter().collect();
        let Some(StreamEvent::Done(usage)) = events.last() else { panic!("{events:?}") };
        usage.cached_tokens
    };
    let first = start(config.clone());
    assert_eq!(first.restored().unwrap().as_ref().unwrap().pages, 0);
    assert_eq!(answer(&first), 0);
    assert_eq!(first.handle().save_cache().unwrap().pages, 5);
    assert_eq!(first.shutdown(true).unwrap().unwrap().pages, 5);

    let second = start(config.clone());
    assert_eq!(second.restored().unwrap().as_ref().unwrap().pages, 5);
    assert_eq!(answer(&second), 20);
    drop(second);

    let state = CacheState { fingerprint: "another".to_owned(), ..state };
    let other = start(EngineConfig { cache_state: Some(state), ..config.clone() });
    assert_eq!(other.restored().unwrap().as_ref().unwrap().pages, 0);
    assert_eq!(answer(&other), 0);
    drop(other);
    assert_eq!(answer(&start(config)), 20, "another model's cache has not taken its place");
    let error = start(CONFIG).handle().save_cache().unwrap_err().to_string();
    assert_eq!(error, "cache-state is not set, but must be a directory for the cache to be saved");
}

#[test]
fn a_constraint_is_compiled_for_who_has_a_place_and_no_one_else() {
    let engine = start(EngineConfig { queue: 1, ..CONFIG });
    let handle = engine.handle();
    let plain = submission(ids(0..3), 5);
    let bad = Constraint::Regex("(".to_owned());
    let constrained = Submission {
        request: Request { constraint: Some(bad.clone()), ..plain.request.clone() },
        ..plain.clone()
    };
    let place = handle.place(&plain).unwrap();
    assert!(matches!(
        handle.submit(constrained.clone(), |_| ControlFlow::Continue(())),
        Err(Error::QueueFull { .. })
    ));
    assert_eq!(handle.snapshot().refused, 1);
    drop(place);
    for _ in 0..2 {
        let refused = handle.submit(constrained.clone(), |_| ControlFlow::Continue(()));
        assert!(matches!(refused, Err(Error::Constraint { .. })), "it gives its place back");
    }
    let good = Constraint::Regex("[a-z]{3}".to_owned());
    let guide = handle.guide(&good).unwrap();
    let request = Request { constraint: Some(good), ..plain.request };
    let submission = Submission { request, ..constrained };
    let place = handle.place(&submission).unwrap();
    let (sender, events) = mpsc::channel();
    let sink = move |event| {
        let _ = sender.send(event);
        ControlFlow::Continue(())
    };
    let _ticket = handle.submit_at(place, submission, Some(guide), sink).unwrap();
    assert!(tokens(&events).len() <= 3);
}
