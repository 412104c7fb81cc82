//! The collectives over one device and over threads, and what happens when one of these fails.

mod suite;

use dsv3_mesh::{AllReduceConfig, Axis, Cause, Group, Mesh, MeshShape, Payload, Rank, TransportError};
use proptest::prelude::*;
use std::{
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
    time::{Duration, Instant},
};
use suite::{Case, Digest};

/// Runs `f` on a thread for each rank, and gives what each returned.
fn on_threads<R: Send>(shape: &str, f: impl Fn(Mesh) -> R + Sync) -> Vec<R> {
    let f = &f;
    thread::scope(|scope| {
        let ranks: Vec<_> = Mesh::threads(shape.parse().unwrap())
            .into_iter()
            .map(|mesh| scope.spawn(move || f(mesh)))
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn all_collectives_on_one_device() {
    suite::run(&Mesh::single());
    on_threads("1x1", |mesh| suite::run(&mesh));
}

#[test]
fn all_collectives_over_threads_and_the_same_bits_each_time() {
    for shape in ["1x2", "2x1", "2x2", "2x4", "4x8"] {
        let first = on_threads(shape, |mesh| suite::run(&mesh));
        let second = on_threads(shape, |mesh| suite::run(&mesh));
        assert_eq!(first, second, "{shape}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn all_collectives_over_any_mesh_and_shape(
        rows in 1_usize..4, columns in 1_usize..4, group in 0_usize..3, payload in 0_usize..3,
        matrix in (0_usize..40, 1_usize..90),
    ) {
        let shape = MeshShape::new(NonZeroUsize::new(rows).unwrap(), NonZeroUsize::new(columns).unwrap());
        let (group, payload) = (Group::EACH[group], Payload::EACH[payload]);
        let case = Case { group, payload, rows: matrix.0, cols: matrix.1 };
        on_threads(&shape.to_string(), |mesh| suite::check(&mesh, case, &mut Digest(0)));
    }
}

#[test]
fn axes_meet_in_turn() {
    // Sums over the rows, then over the columns, are sums over all.
    let sums = on_threads("2x4", |mesh| {
        let mut value = vec![f32::from(1_u16 << mesh.rank().0)];
        for axis in [Axis::Rows, Axis::Columns] {
            value = mesh.all_reduce(value, 1, &AllReduceConfig::new(axis)).unwrap();
        }
        value[0]
    });
    assert_eq!(sums, [255.0; 8]);
}

#[test]
fn many_ranks_on_few_cores_are_not_held_up_by_spinning() {
    let start = Instant::now();
    on_threads("4x8", |mesh| {
        for _ in 0..200 {
            mesh.all_reduce(vec![1.0; 16], 16, &AllReduceConfig::new(Group::All)).unwrap();
        }
    });
    // 6,400 calls that wake 31 others each. With spins of 100 us for each it would be a minute.
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

/// What each rank but `odd` gets from a barrier to which `odd` does something else; and how long that took.
fn others_errors(
    shape: &str,
    timeout: Duration,
    odd: usize,
    f: impl Fn(Mesh) + Sync,
) -> (Vec<TransportError>, Duration) {
    let start = Instant::now();
    let errors = on_threads(shape, |mesh| {
        let mesh = mesh.with_timeout(timeout);
        let met = mesh.barrier(Group::All);
        if mesh.rank() == Rank(odd) {
            // Its panic is its own, and moves the mesh into its unwinding.
            let _ = catch_unwind(AssertUnwindSafe(|| f(mesh)));
            return None;
        }
        // Over columns first, so that not all wait for the odd one itself. A rank that is slow may not even get there.
        let error = met.and_then(|()| mesh.barrier(Axis::Columns)).and_then(|()| mesh.barrier(Group::All));
        let error = error.unwrap_err();
        // After a failure every call fails, and for the same reason.
        assert_eq!(mesh.barrier(Group::All), Err(error.clone()));
        Some((error, start.elapsed()))
    });
    let errors: Vec<_> = errors.into_iter().flatten().collect();
    let latest = errors.iter().map(|&(_, time)| time).max().unwrap();
    (errors.into_iter().map(|(error, _)| error).collect(), latest)
}

#[test]
fn a_rank_that_ends_early_is_named_at_once() {
    for shape in ["1x2", "2x2", "2x4"] {
        let (errors, time) = others_errors(shape, Duration::from_secs(60), 1, drop);
        for error in errors {
            assert_eq!(error.peer.rank, Rank(1), "{error}");
            assert!(error.to_string().starts_with("rank 1 ended before barrier over "), "{error}");
        }
        assert!(time < Duration::from_secs(5), "{time:?}");
    }
}

#[test]
fn a_rank_that_panics_is_named_at_once() {
    for shape in ["1x2", "2x4"] {
        let (errors, time) = others_errors(shape, Duration::from_secs(60), 1, |_mesh| panic!("as asked"));
        assert!(errors.iter().all(|error| error.to_string() == "rank 1 panicked"), "{errors:?}");
        assert!(time < Duration::from_secs(5), "{time:?}");
    }
}

#[test]
fn a_rank_that_fails_is_heard_by_all() {
    let (errors, time) = others_errors("2x4", Duration::from_secs(60), 3, |mesh| mesh.abort("no such file"));
    assert!(errors.iter().all(|error| error.to_string() == "rank 3 failed: no such file"), "{errors:?}");
    assert!(time < Duration::from_secs(5), "{time:?}");
}

#[test]
fn a_rank_that_hangs_is_named_by_those_that_do_not_wait_for_it_too() {
    let timeout = Duration::from_millis(300);
    let hangs = |mesh: Mesh| {
        thread::sleep(Duration::from_secs(2));
        drop(mesh);
    };
    let (errors, time) = others_errors("2x2", timeout, 1, hangs);
    for error in errors {
        // Rank 0 waits for rank 1 over the columns; ranks 2 and 3 are through with theirs, and wait for all.
        let Cause::Late { timeout: told, .. } = error.cause else { panic!("{error}") };
        assert_eq!((error.peer.rank, told), (Rank(1), timeout), "{error}");
        assert!(error.to_string().ends_with("within 0.3 s"), "{error}");
    }
    assert!(time >= timeout && time < Duration::from_secs(2), "{time:?}");
}
