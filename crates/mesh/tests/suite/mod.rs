//! The checks of the collectives, the same for every transport. Each rank knows what the others bring, and computes
//! by plain code what must come out.

use dsv3_mesh::{
    AllGatherConfig, AllReduceConfig, AllToAllConfig, Cause, Collective, Group, Mesh, Moved, Payload, Rank,
    ReduceScatterConfig, Topology,
};

/// What one call is made with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    /// The devices that meet.
    pub(crate) group: Group,
    /// The form in which values move.
    pub(crate) payload: Payload,
    /// Rows of a matrix; where ranks bring different numbers, up to two more or fewer.
    pub(crate) rows: usize,
    /// Columns that each device has.
    pub(crate) cols: usize,
}

/// A hash of all bits that came out, to compare runs and transports by.
pub(crate) struct Digest(pub(crate) u64);

impl Digest {
    fn add(&mut self, values: &[f32]) {
        for value in values {
            // FNV-1a.
            self.0 = (self.0 ^ u64::from(value.to_bits())).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

/// All checks over small shapes, all groups and payloads. Returns the hash of all results of this rank.
pub(crate) fn run(mesh: &Mesh) -> u64 {
    let mut digest = Digest(0xcbf2_9ce4_8422_2325);
    for group in Group::EACH {
        for payload in Payload::EACH {
            // A token, a few of an odd width, none at all.
            for (rows, cols) in [(1, 64), (5, 7), (3, 1), (0, 5)] {
                check(mesh, Case { group, payload, rows, cols }, &mut digest);
            }
            // Large: two steps of an all_reduce, several messages of a transport that cuts them.
            let members = mesh.shape().members(group);
            let cols = if members <= 8 { 16_000 / members } else { 200 };
            check(mesh, Case { group, payload, rows: 3, cols }, &mut digest);
        }
        bytes_and_barrier(mesh, group);
    }
    disagreement(mesh);
    digest.0
}

/// All collectives that move matrices, once.
pub(crate) fn check(mesh: &Mesh, case: Case, digest: &mut Digest) {
    for topology in [Topology::Direct, Topology::Ring] {
        gather_features(mesh, case, topology, digest);
        gather_tokens(mesh, case, topology, digest);
    }
    scatter_features(mesh, case, digest);
    scatter_tokens(mesh, case, digest);
    reduce(mesh, case, digest);
    to_all(mesh, case, digest);
}

fn gather_features(mesh: &Mesh, case: Case, topology: Topology, digest: &mut Digest) {
    let Case { group, payload, rows, cols } = case;
    let config = AllGatherConfig { payload, topology, ..AllGatherConfig::features(group) };
    let matrix = |rank| matrix(rank, 1, rows * cols);
    let predicted = config.moved([rows, cols], members(mesh, group).len());
    let got = counted(mesh, Collective::AllGather, predicted, || {
        mesh.all_gather(matrix(mesh.rank()), cols, &config).unwrap()
    });
    let parts: Vec<_> = members(mesh, group).into_iter().map(matrix).collect();
    let expected: Vec<f32> = (0..rows)
        .flat_map(|row| parts.iter().flat_map(move |part| &part[row * cols..][..cols]).copied())
        .collect();
    close(&got, &expected, rounding(payload, &expected, parts.len()), case);
    same_everywhere(mesh, group, &got);
    digest.add(&got);
}

fn gather_tokens(mesh: &Mesh, case: Case, topology: Topology, digest: &mut Digest) {
    let Case { group, payload, cols, .. } = case;
    let config = AllGatherConfig { payload, topology, ..AllGatherConfig::tokens(group) };
    let ranks = members(mesh, group);
    let counts: Vec<_> = ranks.iter().map(|&rank| uneven(case.rows, rank)).collect();
    let predicted = config.moved_uneven(&counts, mesh.members(group).place, cols);
    let (got, rows) = counted(mesh, Collective::AllGather, predicted, || {
        let mine = matrix(mesh.rank(), 2, uneven(case.rows, mesh.rank()) * cols);
        mesh.all_gather_with_rows(mine, cols, &config).unwrap()
    });
    assert_eq!(rows, counts, "{case:?}");
    let expected: Vec<f32> =
        ranks.iter().zip(&counts).flat_map(|(&rank, count)| matrix(rank, 2, count * cols)).collect();
    close(&got, &expected, rounding(payload, &expected, ranks.len()), case);
    same_everywhere(mesh, group, &got);
    digest.add(&got);
}

fn scatter_features(mesh: &Mesh, case: Case, digest: &mut Digest) {
    let Case { group, payload, rows, cols } = case;
    let config = ReduceScatterConfig { payload, ..ReduceScatterConfig::features(group) };
    let ranks = members(mesh, group);
    let width = cols * ranks.len();
    let got = counted(mesh, Collective::ReduceScatter, config.moved([rows, width], ranks.len()), || {
        mesh.reduce_scatter(matrix(mesh.rank(), 3, rows * width), width, &config).unwrap()
    });
    let place = mesh.members(group).place;
    let sums = sums(&ranks, 3, rows * width);
    let expected: Vec<f32> =
        sums.chunks(width).flat_map(|row| &row[place * cols..][..cols]).copied().collect();
    close(&got, &expected, rounding_of_sums(payload, &ranks, 3, rows * width), case);
    digest.add(&got);
}

fn scatter_tokens(mesh: &Mesh, case: Case, digest: &mut Digest) {
    let Case { group, payload, cols, .. } = case;
    let config = ReduceScatterConfig { payload, ..ReduceScatterConfig::tokens(group) };
    let ranks = members(mesh, group);
    let place = mesh.members(group).place;
    for counts in
        [ranks.iter().map(|&rank| uneven(case.rows, rank)).collect::<Vec<_>>(), vec![case.rows; ranks.len()]]
    {
        let all = counts.iter().sum::<usize>() * cols;
        let predicted = config.moved_uneven(&counts, place, cols);
        let got = counted(mesh, Collective::ReduceScatter, predicted, || {
            let mine = matrix(mesh.rank(), 4, all);
            if counts.iter().all(|&count| count == case.rows) {
                mesh.reduce_scatter(mine, cols, &config).unwrap()
            } else {
                mesh.reduce_scatter_rows(mine, cols, &counts, &config).unwrap()
            }
        });
        let before = counts[..place].iter().sum::<usize>() * cols;
        let expected = &sums(&ranks, 4, all)[before..][..counts[place] * cols];
        close(&got, expected, rounding_of_sums(payload, &ranks, 4, all), case);
        digest.add(&got);
    }
}

fn reduce(mesh: &Mesh, case: Case, digest: &mut Digest) {
    let Case { group, payload, rows, cols } = case;
    let config = AllReduceConfig { payload, ..AllReduceConfig::new(group) };
    let ranks = members(mesh, group);
    let predicted = config.moved([rows, cols], ranks.len(), mesh.members(group).place);
    let got = counted(mesh, Collective::AllReduce, predicted, || {
        mesh.all_reduce(matrix(mesh.rank(), 5, rows * cols), cols, &config).unwrap()
    });
    let expected = sums(&ranks, 5, rows * cols);
    // In two steps, the sums are rounded once more.
    let first = rounding_of_sums(payload, &ranks, 5, rows * cols);
    let largest = first + largest(&expected);
    let second = if ranks.len() > 1 { relative(payload) * largest } else { 0.0 };
    close(&got, &expected, first + second, case);
    same_everywhere(mesh, group, &got);
    digest.add(&got);
}

fn to_all(mesh: &Mesh, case: Case, digest: &mut Digest) {
    let Case { group, payload, cols, .. } = case;
    let config = AllToAllConfig { payload, ..AllToAllConfig::new(group) };
    let ranks = members(mesh, group);
    let count = |from: Rank, to: Rank| uneven(case.rows, Rank(from.0 + 2 * to.0));
    let piece = |from: Rank, to: Rank| matrix(from, 100 + to.0, count(from, to) * cols);
    let counts: Vec<Vec<_>> =
        ranks.iter().map(|&from| ranks.iter().map(|&to| count(from, to)).collect()).collect();
    let predicted = config.moved(&counts, mesh.members(group).place, cols);
    let got = counted(mesh, Collective::AllToAll, predicted, || {
        let pieces = ranks.iter().map(|&to| piece(mesh.rank(), to)).collect();
        mesh.all_to_all(pieces, cols, &config).unwrap()
    });
    assert_eq!(got.len(), ranks.len(), "{case:?}");
    for (&from, got) in ranks.iter().zip(&got) {
        let expected = piece(from, mesh.rank());
        close(got, &expected, rounding(payload, &expected, ranks.len()), case);
        digest.add(got);
    }
}

fn bytes_and_barrier(mesh: &Mesh, group: Group) {
    let ranks = members(mesh, group);
    for length in [0, 3, 100_000] {
        let of = |rank: Rank| vec![rank.0 as u8; length + rank.0];
        for &root in &ranks {
            let bytes = (root == mesh.rank()).then(|| of(root));
            assert_eq!(*mesh.broadcast(bytes, root, group).unwrap(), of(root));
        }
        let all = mesh.all_gather_bytes(of(mesh.rank()), group).unwrap();
        assert!(all.iter().zip(&ranks).all(|(bytes, &rank)| **bytes == of(rank)));
        assert_eq!(all.len(), ranks.len());
    }
    mesh.barrier(group).unwrap();
}

/// The last rank comes with other columns, then to another collective: everyone is told, and by whom.
fn disagreement(mesh: &Mesh) {
    let last = Rank(mesh.shape().devices() - 1);
    if last == Rank(0) {
        return;
    }
    let odd = mesh.rank() == last;
    let width = if odd { 2 } else { 3 };
    let widths = mesh.all_reduce(vec![0.0; 6], width, &AllReduceConfig::new(Group::All)).unwrap_err();
    let collectives = if odd {
        mesh.barrier(Group::All).unwrap_err()
    } else {
        mesh.all_gather(vec![0.0; 6], 3, &AllGatherConfig::tokens(Group::All)).unwrap_err()
    };
    let at_fault = if odd { Rank(0) } else { last };
    for (error, expected) in [
        (
            widths,
            ["all_reduce over all devices of [2, 3] in f32", "all_reduce over all devices of [3, 2] in f32"],
        ),
        (
            collectives,
            ["all_gather over all devices of [2, 3] in f32", "barrier over all devices of [0, 0] in f32"],
        ),
    ] {
        assert_eq!(error.peer.rank, at_fault, "{error}");
        assert!(matches!(error.cause, Cause::Disagrees { .. }), "{error}");
        assert!(expected.iter().all(|part| error.to_string().contains(part)), "{error}");
    }
}

fn members(mesh: &Mesh, group: Group) -> Vec<Rank> {
    mesh.shape().ranks(group, mesh.rank())
}

/// What a rank brings: values in -1 .. 1 with all their bits set at random, so that sums depend on their order.
fn matrix(rank: Rank, salt: usize, length: usize) -> Vec<f32> {
    (0..length)
        .map(|index| {
            // SplitMix64.
            let mut bits = ((rank.0 * 1000 + salt) as u64) << 32 | index as u64;
            bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((bits >> 40) as f32) / (1_u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// Rows that differ from rank to rank, and are none for some where `rows` is small.
fn uneven(rows: usize, rank: Rank) -> usize {
    (rows + rank.0 % 5).saturating_sub(2)
}

/// The sums in order of rank.
fn sums(ranks: &[Rank], salt: usize, length: usize) -> Vec<f32> {
    let mut sums = matrix(ranks[0], salt, length);
    for &rank in &ranks[1..] {
        sums.iter_mut().zip(matrix(rank, salt, length)).for_each(|(sum, value)| *sum += value);
    }
    sums
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest, value| value.abs().max(largest))
}

/// How far a payload moves a value, relative to the largest value of its block.
fn relative(payload: Payload) -> f32 {
    match payload {
        Payload::F32 => 0.0,
        Payload::Bf16 => 2_f32.powi(-8),
        Payload::Bf8 => 1.0 / 127.5,
    }
}

/// How far a payload moves values; those of a lone device stay.
fn rounding(payload: Payload, values: &[f32], members: usize) -> f32 {
    if members == 1 { 0.0 } else { relative(payload) * largest(values) }
}

/// How far a payload moves sums: what it moves each value, and the additions' own rounding, which then differs.
fn rounding_of_sums(payload: Payload, ranks: &[Rank], salt: usize, length: usize) -> f32 {
    let values: f32 =
        ranks.iter().map(|&rank| rounding(payload, &matrix(rank, salt, length), ranks.len())).sum();
    let magnitudes = ranks.len() as f32;
    let additions = 2.0 * magnitudes * (ranks.len() - 1) as f32 * f32::EPSILON;
    if payload == Payload::F32 { 0.0 } else { values + additions }
}

fn close(got: &[f32], expected: &[f32], bound: f32, case: Case) {
    assert_eq!(got.len(), expected.len(), "{case:?}");
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (got - expected).abs();
        assert!(error <= bound, "{case:?}: value {index} is {got}, expected {expected} within {bound}");
    }
}

/// Asserts that all members hold the same bits.
fn same_everywhere(mesh: &Mesh, group: Group, values: &[f32]) {
    let mut digest = Digest(0);
    digest.add(values);
    let all = mesh.all_gather_bytes(digest.0.to_le_bytes().to_vec(), group).unwrap();
    assert!(all.iter().all(|other| **other == digest.0.to_le_bytes()));
}

/// Runs `f` and asserts that it moved what was predicted.
fn counted<R>(mesh: &Mesh, collective: Collective, predicted: Moved, f: impl FnOnce() -> R) -> R {
    let before = mesh.traffic();
    let result = f();
    let moved = mesh.traffic() - before;
    assert_eq!((moved.of(collective), moved.total()), (predicted, predicted), "{collective}");
    result
}
