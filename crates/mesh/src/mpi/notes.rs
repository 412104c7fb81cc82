//! What ranks tell each other while they wait. One that is not there keeps many waiting, most of them for others that
//! wait, too; from the notes each finds the one at fault.

use super::{connection::Connection, transfer::Transfer};
use crate::{
    Rank,
    transport::Label,
    view::{Buffer, View},
};
use std::{
    thread,
    time::{Duration, Instant},
};

/// Bytes of a note: four words, which are the rank that is waited for and the label of the exchange.
const NOTE: usize = 32;
/// In place of a rank: the wait is over.
const NOBODY: u64 = u64::MAX;
/// How long to look for notes. They have come before, but MPI may not have looked at them.
const LOOK: Duration = Duration::from_millis(30);

/// For whom a rank waits, and in what.
type Wait = Option<(Rank, Label)>;

/// Tells all others of this rank's wait.
pub(super) fn send(connection: &Connection, others: &[Rank], waits_for: Option<Rank>, label: Label) {
    let rank = waits_for.map_or(NOBODY, |rank| rank.0 as u64);
    let bytes: Vec<u8> = [rank].into_iter().chain(label.to_words()).flat_map(u64::to_ne_bytes).collect();
    let note = View::whole(Buffer::from(bytes));
    for &other in others {
        // Who cannot be told is at fault or knows less; both are found out without it.
        let _ = Transfer::send(connection.notes(other), note.clone(), 0);
    }
}

/// The rank at fault where `first` did not come to an exchange, and the exchange that it did not come to.
pub(super) fn at_fault(connection: &Connection, others: &[Rank], first: (Rank, Label)) -> (Rank, Label) {
    let waits = read(connection, others);
    let wait_of = |rank: Rank| {
        let place = others.iter().position(|&other| other == rank)?;
        // Whoever waits for this rank, which is here, is not excused by that.
        waits[place].filter(|(next, _)| others.contains(next))
    };
    let mut fault = first;
    for _ in others {
        match wait_of(fault.0) {
            Some(next) => fault = next,
            None => break,
        }
    }
    fault
}

/// The latest note of each. Leaves receives behind that never end, so the connection is of no use after it.
fn read(connection: &Connection, others: &[Rank]) -> Vec<Wait> {
    let receive = |other: Rank| Transfer::receive(connection.notes(other), vec![0; NOTE], 0).ok();
    let mut receives: Vec<_> = others.iter().map(|&other| receive(other)).collect();
    let mut waits = vec![None; others.len()];
    let start = Instant::now();
    while start.elapsed() < LOOK {
        for (place, &other) in others.iter().enumerate() {
            while receives[place].as_mut().is_some_and(|receive| receive.done() == Ok(true)) {
                let note = receives[place].take().expect("it is done").into_memory();
                waits[place] = wait(&note);
                receives[place] = receive(other);
            }
        }
        thread::yield_now();
    }
    waits
}

fn wait(note: &[u8]) -> Wait {
    let mut words =
        note.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().expect("eight bytes")));
    let rank = words.next().filter(|&rank| rank != NOBODY)?;
    let label = Label::from_words([words.next()?, words.next()?, words.next()?])?;
    Some((Rank(rank as usize), label))
}
