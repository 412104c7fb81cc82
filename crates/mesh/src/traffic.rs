//! What moves between devices: counted as it goes, and predicted from configs alone.

use crate::{
    AllGatherConfig, AllReduceConfig, AllToAllConfig, Dim, ReduceScatterConfig,
    mesh::{all_reduce_parts, reduces_at_once},
};
use std::{
    fmt, iter, ops,
    sync::atomic::{AtomicU64, Ordering},
};

/// The collectives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Collective {
    /// Parts put together.
    AllGather,
    /// Sums, each device keeps a part.
    ReduceScatter,
    /// Sums, each device keeps all.
    AllReduce,
    /// Rows from each device for each device.
    AllToAll,
    /// One device's bytes to all.
    Broadcast,
    /// Nothing but the meeting.
    Barrier,
}

impl Collective {
    /// All of them.
    pub const EACH: [Self; 6] = [
        Self::AllGather,
        Self::ReduceScatter,
        Self::AllReduce,
        Self::AllToAll,
        Self::Broadcast,
        Self::Barrier,
    ];
}

impl fmt::Display for Collective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AllGather => "all_gather",
            Self::ReduceScatter => "reduce_scatter",
            Self::AllReduce => "all_reduce",
            Self::AllToAll => "all_to_all",
            Self::Broadcast => "broadcast",
            Self::Barrier => "barrier",
        })
    }
}

/// What one device has sent and received. Bytes of values: what a transport adds to them is not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Exchanges, of which some collectives take several.
    pub exchanges: u64,
    /// Bytes to other devices, once for each.
    pub sent: u64,
    /// Bytes from other devices.
    pub received: u64,
}

impl ops::Add for Moved {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            exchanges: self.exchanges + other.exchanges,
            sent: self.sent + other.sent,
            received: self.received + other.received,
        }
    }
}

impl ops::Sub for Moved {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            exchanges: self.exchanges - earlier.exchanges,
            sent: self.sent - earlier.sent,
            received: self.received - earlier.received,
        }
    }
}

impl iter::Sum for Moved {
    fn sum<I: Iterator<Item = Self>>(moved: I) -> Self {
        moved.fold(Self::default(), ops::Add::add)
    }
}

/// The traffic of one device since its mesh was made, by collective.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic([Moved; Collective::EACH.len()]);

impl Traffic {
    /// That of one collective.
    pub fn of(&self, collective: Collective) -> Moved {
        self.0[collective as usize]
    }

    /// That of all collectives.
    pub fn total(&self) -> Moved {
        self.0.into_iter().sum()
    }
}

impl ops::Sub for Traffic {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self(std::array::from_fn(|index| self.0[index] - earlier.0[index]))
    }
}

/// Counts as the device goes.
#[derive(Debug, Default)]
pub(crate) struct Counter([[AtomicU64; 3]; Collective::EACH.len()]);

impl Counter {
    pub(crate) fn count(&self, collective: Collective, sent: usize, received: usize) {
        let [exchanges, all_sent, all_received] = &self.0[collective as usize];
        exchanges.fetch_add(1, Ordering::Relaxed);
        all_sent.fetch_add(sent as u64, Ordering::Relaxed);
        all_received.fetch_add(received as u64, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Traffic {
        Traffic(std::array::from_fn(|index| {
            let [exchanges, sent, received] =
                std::array::from_fn(|field| self.0[index][field].load(Ordering::Relaxed));
            Moved { exchanges, sent, received }
        }))
    }
}

impl AllGatherConfig {
    /// What a device sends and receives when each of `members` devices brings a matrix `[rows, cols]`.
    pub fn moved(&self, [rows, cols]: [usize; 2], members: usize) -> Moved {
        self.moved_uneven(&vec![rows; members], 0, cols)
    }

    /// What the device at `place` sends and receives, where devices bring different numbers of rows.
    pub fn moved_uneven(&self, rows: &[usize], place: usize, cols: usize) -> Moved {
        let (others, bytes) = (rows.len() as u64 - 1, |rows: usize| self.payload.bytes(rows * cols) as u64);
        let all: u64 = rows.iter().map(|&rows| bytes(rows)).sum();
        let received = all - bytes(rows[place]);
        match self.topology {
            _ if others == 0 => Moved::default(),
            crate::Topology::Direct => Moved { exchanges: 1, sent: others * bytes(rows[place]), received },
            // All but the part that the next device brings itself.
            crate::Topology::Ring => {
                Moved { exchanges: others, sent: all - bytes(rows[(place + 1) % rows.len()]), received }
            }
        }
    }
}

impl ReduceScatterConfig {
    /// What a device sends and receives when each of `members` devices adds a matrix `[rows, cols]`, cut evenly.
    pub fn moved(&self, [rows, cols]: [usize; 2], members: usize) -> Moved {
        match self.dim {
            Dim::Tokens => self.moved_uneven(&vec![rows / members; members], 0, cols),
            Dim::Features => self.moved_uneven(&vec![rows; members], 0, cols / members),
        }
    }

    /// What the device at `place` sends and receives where devices keep different numbers of rows of `cols` values.
    pub fn moved_uneven(&self, rows: &[usize], place: usize, cols: usize) -> Moved {
        let bytes = |rows: usize| self.payload.bytes(rows * cols) as u64;
        let others = rows.len() as u64 - 1;
        let all: u64 = rows.iter().map(|&rows| bytes(rows)).sum();
        let own = bytes(rows[place]);
        Moved { exchanges: others.min(1), sent: all - own, received: others * own }
    }
}

impl AllReduceConfig {
    /// What the device at `place` sends and receives when each of `members` devices adds a matrix `[rows, cols]`.
    pub fn moved(&self, [rows, cols]: [usize; 2], members: usize, place: usize) -> Moved {
        let values = rows * cols;
        let others = members as u64 - 1;
        if others == 0 {
            return Moved::default();
        }
        if reduces_at_once(self.payload.bytes(values), members) {
            let bytes = others * self.payload.bytes(values) as u64;
            return Moved { exchanges: 1, sent: bytes, received: bytes };
        }
        let parts: Vec<u64> =
            all_reduce_parts(values, members).map(|part| self.payload.bytes(part.len()) as u64).collect();
        let (own, all): (u64, u64) = (parts[place], parts.iter().sum());
        // The parts of the others go out, one's own comes in from each; then the sums go the other way.
        let bytes = all - own + others * own;
        Moved { exchanges: 2, sent: bytes, received: bytes }
    }
}

impl AllToAllConfig {
    /// What the device at `place` sends and receives: `rows[from][to]` rows of `cols` values go from one device to
    /// another.
    pub fn moved(&self, rows: &[Vec<usize>], place: usize, cols: usize) -> Moved {
        let bytes = |rows: usize| self.payload.bytes(rows * cols) as u64;
        let others = || (0..rows.len()).filter(|&other| other != place);
        Moved {
            exchanges: u64::from(rows.len() > 1),
            sent: others().map(|to| bytes(rows[place][to])).sum(),
            received: others().map(|from| bytes(rows[from][place])).sum(),
        }
    }
}
