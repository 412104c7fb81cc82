//! Where ranks meet: the collectives, typed, over whatever transport carries them.

use crate::{
    AllGatherConfig, AllReduceConfig, AllToAllConfig, Cause, Collective, Dim, Group, MeshShape, Payload,
    Peer, Rank, ReduceScatterConfig, Topology, Traffic, TransportError,
    payload::{add, append},
    traffic::Counter,
    transport::{Call, Give, Label, Members, SingleDevice, Take, Transport},
    view::{Buffer, View},
};
use fit::Fit;
use std::{ops::Range, sync::Arc, time::Duration};

mod fit;

/// How long a rank waits for the others unless told otherwise. Leaves time to end a job within ten seconds of a rank's
/// standing still.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(6);

/// Bytes that an all_reduce in one step may send more than one in two: what a transport sends in the time that a
/// second step takes.
const BYTES_FOR_A_STEP: usize = 64 << 10;
/// Parts of a large all_reduce are multiples of this many values, so that blocks of values stay whole.
const PART_VALUES: usize = 16;

/// One rank's view of the mesh: its shape, its own place, and the way to the others.
///
/// All ranks call the same collectives in the same order, from one thread each. Sums are taken in order of rank, so
/// that all members of a group hold the same bits, on every transport and in every run. A group of one device changes
/// and copies nothing.
///
/// When the last clone is dropped, ranks that still wait for this one fail at once; when it is dropped by a panic, all
/// ranks do.
#[derive(Clone)]
pub struct Mesh {
    shape: MeshShape,
    rank: Rank,
    groups: Arc<[Members; 3]>,
    transport: Arc<dyn Transport>,
    timeout: Duration,
    counter: Arc<Counter>,
}

impl Mesh {
    /// The mesh of one device.
    pub fn single() -> Self {
        Self::new(MeshShape::SINGLE, Rank(0), Arc::new(SingleDevice))
    }

    /// A rank's view, over a transport that reaches all ranks of the shape.
    pub fn new(shape: MeshShape, rank: Rank, transport: Arc<dyn Transport>) -> Self {
        assert!(rank.0 < shape.devices(), "rank {} of a {shape} mesh", rank.0);
        let groups = Group::EACH.map(|group| {
            let ranks = shape.ranks(group, rank);
            let place = ranks.iter().position(|&other| other == rank).expect("a rank is in its groups");
            Members { group, ranks, place }
        });
        let counter = Arc::default();
        Self { shape, rank, groups: Arc::new(groups), transport, timeout: DEFAULT_TIMEOUT, counter }
    }

    /// The same rank, with another time to wait for the others in each exchange.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long this rank waits for the others.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The mesh's shape.
    pub fn shape(&self) -> MeshShape {
        self.shape
    }

    /// The caller's own number.
    pub fn rank(&self) -> Rank {
        self.rank
    }

    /// A rank, and where it runs.
    pub fn peer(&self, rank: Rank) -> Peer {
        Peer { rank, host: self.transport.host(rank) }
    }

    /// Those that this rank meets in a group.
    pub fn members(&self, group: impl Into<Group>) -> &Members {
        &self.groups[group.into().index()]
    }

    /// What this rank has sent and received so far.
    pub fn traffic(&self) -> Traffic {
        self.counter.read()
    }

    /// Ends the mesh for all ranks, because this one met an error. The others' calls fail with the message. Where
    /// ranks are processes, the message goes to standard error and the whole job ends here, with exit code 1.
    pub fn abort(&self, message: &str) {
        let cause = Cause::Failed(message.to_owned());
        self.transport.fail(TransportError { peer: self.peer(self.rank), cause }, false);
    }

    /// [`abort`](Self::abort) for a reason that other ranks know, too, and abort for: one of them speaks for all.
    pub fn abort_because(&self, error: TransportError) {
        self.transport.fail(error, true);
    }

    /// Puts the parts of all members together, along the config's dimension.
    ///
    /// # Shapes
    /// Features: `[rows, cols]` on each device to `[rows, cols * members]`. Tokens: `[rows of the device, cols]`, also
    /// none, to `[sum of rows, cols]`.
    ///
    /// # Errors
    /// If a member fails, does not come, or comes with other columns (or rows, where columns are put together).
    pub fn all_gather(
        &self,
        values: Vec<f32>,
        cols: usize,
        config: &AllGatherConfig,
    ) -> Result<Vec<f32>, TransportError> {
        if self.shape.members(config.cluster_axis) == 1 {
            return Ok(values);
        }
        Ok(self.all_gather_with_rows(values, cols, config)?.0)
    }

    /// As [`all_gather`](Self::all_gather), and how many rows each member brought.
    ///
    /// # Errors
    /// As [`all_gather`](Self::all_gather).
    pub fn all_gather_with_rows(
        &self,
        values: Vec<f32>,
        cols: usize,
        config: &AllGatherConfig,
    ) -> Result<(Vec<f32>, Vec<usize>), TransportError> {
        let rows = rows_of(&values, cols);
        if self.shape.members(config.cluster_axis) == 1 {
            return Ok((values, vec![rows]));
        }
        let shape = [rows, cols];
        let payload = config.payload;
        let call = self.call(Label {
            collective: Collective::AllGather,
            group: config.cluster_axis,
            payload,
            shape,
        });
        let fit = Fit::Matrices { same_rows: config.dim == Dim::Features };
        let mine = payload.encode(View::whole(Buffer::from(values)));
        let mut parts = match config.topology {
            Topology::Direct => self.exchange(&call, Give::Same(mine.clone()), Take::Each, fit)?,
            Topology::Ring => self.pass_around(&call, mine.clone(), fit)?,
        };
        parts.insert(call.members.place, (rows, mine));
        let counts = parts.iter().map(|&(rows, _)| rows).collect();
        let parts: Vec<_> = parts.into_iter().map(|(_, part)| payload.decode(part)).collect();
        let mut all = Vec::with_capacity(parts.iter().map(View::length).sum::<usize>() / 4);
        match config.dim {
            Dim::Tokens => parts.iter().flat_map(View::rows).for_each(|run| append(&mut all, run)),
            Dim::Features => {
                let parts: Vec<_> = parts.iter().map(View::to_contiguous).collect();
                for row in 0..rows {
                    parts.iter().for_each(|part| append(&mut all, &part[4 * cols * row..][..4 * cols]));
                }
            }
        }
        Ok((all, counts))
    }

    /// Adds over the members and keeps this device's part: as many columns or rows as each other member.
    ///
    /// # Shapes
    /// `[rows, cols]` on each device to `[rows, cols / members]` (features) or `[rows / members, cols]` (tokens).
    ///
    /// # Errors
    /// If a member fails, does not come, or comes with a matrix of another shape.
    ///
    /// # Panics
    /// If the dimension does not divide over the members.
    pub fn reduce_scatter(
        &self,
        values: Vec<f32>,
        cols: usize,
        config: &ReduceScatterConfig,
    ) -> Result<Vec<f32>, TransportError> {
        let members = self.shape.members(config.cluster_axis);
        let rows = rows_of(&values, cols);
        match config.dim {
            Dim::Tokens => {
                assert!(rows.is_multiple_of(members), "{rows} rows do not divide over {members} devices");
                self.reduce_scatter_rows(values, cols, &vec![rows / members; members], config)
            }
            Dim::Features => {
                assert!(cols.is_multiple_of(members), "{cols} columns do not divide over {members} devices");
                let width = 4 * (cols / members);
                let cut = |buffer: &Buffer, place| {
                    View::strided(buffer.clone(), place * width, rows, [width, 4 * cols])
                };
                self.reduce_parts(values, [rows, cols], config, cut)
            }
        }
    }

    /// Adds over the members and keeps this device's rows; `rows` says how many each member keeps.
    ///
    /// # Shapes
    /// `[sum of rows, cols]` on each device to `[rows of the device, cols]`.
    ///
    /// # Errors
    /// If a member fails, does not come, or comes with a matrix of another shape.
    ///
    /// # Panics
    /// If `config` is for another dimension, or `rows` are not the matrix's, divided over the members.
    pub fn reduce_scatter_rows(
        &self,
        values: Vec<f32>,
        cols: usize,
        rows: &[usize],
        config: &ReduceScatterConfig,
    ) -> Result<Vec<f32>, TransportError> {
        assert_eq!(config.dim, Dim::Tokens, "rows are tokens");
        assert_eq!(rows.len(), self.shape.members(config.cluster_axis), "a number of rows for each member");
        let all = rows_of(&values, cols);
        assert_eq!(rows.iter().sum::<usize>(), all, "the rows that members keep");
        let cut = |buffer: &Buffer, place: usize| {
            let before: usize = rows[..place].iter().sum();
            View::range(buffer.clone(), 4 * cols * before, 4 * cols * rows[place])
        };
        self.reduce_parts(values, [all, cols], config, cut)
    }

    /// Adds the parts that are this device's.
    fn reduce_parts(
        &self,
        values: Vec<f32>,
        shape: [usize; 2],
        config: &ReduceScatterConfig,
        cut: impl Fn(&Buffer, usize) -> View,
    ) -> Result<Vec<f32>, TransportError> {
        let ReduceScatterConfig { cluster_axis: group, payload, .. } = *config;
        if self.shape.members(group) == 1 {
            return Ok(values);
        }
        let call = self.call(Label { collective: Collective::ReduceScatter, group, payload, shape });
        let buffer = Buffer::from(values);
        let parts = (0..call.members.count()).map(|place| cut(&buffer, place));
        self.sum_of_parts(&call, parts)
    }

    /// Gives each member its part, and adds those that are this device's, in order of rank.
    fn sum_of_parts(
        &self,
        call: &Call<'_>,
        parts: impl Iterator<Item = View>,
    ) -> Result<Vec<f32>, TransportError> {
        let payload = call.label.payload;
        let parts: Vec<_> = parts.map(|part| payload.encode(part)).collect();
        let mine = parts[call.members.place].clone();
        let theirs =
            self.exchange(call, Give::Each(parts), Take::Each, Fit::Parts { bytes: mine.length() })?;
        Ok(sum(call, mine, theirs))
    }

    /// Adds over the members. A large matrix goes in two steps, in which each device adds a part of it.
    ///
    /// # Shapes
    /// `[rows, cols]` to `[rows, cols]`.
    ///
    /// # Errors
    /// If a member fails, does not come, or comes with a matrix of another shape.
    pub fn all_reduce(
        &self,
        values: Vec<f32>,
        cols: usize,
        config: &AllReduceConfig,
    ) -> Result<Vec<f32>, TransportError> {
        let AllReduceConfig { cluster_axis: group, payload } = *config;
        let members = self.shape.members(group);
        if members == 1 {
            return Ok(values);
        }
        let shape = [rows_of(&values, cols), cols];
        let call = self.call(Label { collective: Collective::AllReduce, group, payload, shape });
        let length = values.len();
        let buffer = Buffer::from(values);
        if reduces_at_once(payload.bytes(length), members) {
            let mine = payload.encode(View::whole(buffer));
            let fit = Fit::Matrices { same_rows: true };
            let theirs = self.exchange(&call, Give::Same(mine.clone()), Take::Each, fit)?;
            return Ok(sum(&call, mine, theirs));
        }
        let parts = all_reduce_parts(length, members)
            .map(|part| View::range(buffer.clone(), 4 * part.start, 4 * part.len()));
        let sums = self.sum_of_parts(&call, parts)?;
        let mine = payload.encode(View::whole(Buffer::from(sums)));
        let mut parts = self.exchange(&call, Give::Same(mine.clone()), Take::Each, Fit::AnyBytes)?;
        parts.insert(call.members.place, (0, mine));
        let mut all = Vec::with_capacity(length);
        for (_, part) in parts {
            payload.decode(part).rows().for_each(|run| append(&mut all, run));
        }
        Ok(all)
    }

    /// Gives each member a matrix, and gets one from each: `pieces` and the result are in order of the members.
    ///
    /// # Shapes
    /// Pieces `[any number of rows, cols]`.
    ///
    /// # Errors
    /// If a member fails, does not come, or comes with other columns.
    ///
    /// # Panics
    /// If there is not one piece for each member.
    pub fn all_to_all(
        &self,
        mut pieces: Vec<Vec<f32>>,
        cols: usize,
        config: &AllToAllConfig,
    ) -> Result<Vec<Vec<f32>>, TransportError> {
        let AllToAllConfig { cluster_axis: group, payload } = *config;
        let members = self.shape.members(group);
        assert_eq!(pieces.len(), members, "a piece for each member");
        if members == 1 {
            return Ok(pieces);
        }
        let rows = pieces.iter().map(|piece| rows_of(piece, cols)).sum();
        let call = self.call(Label { collective: Collective::AllToAll, group, payload, shape: [rows, cols] });
        let mine = std::mem::take(&mut pieces[call.members.place]);
        let mine = payload.decode(payload.encode(View::whole(Buffer::from(mine)))).into_values();
        let pieces =
            pieces.into_iter().map(|piece| payload.encode(View::whole(Buffer::from(piece)))).collect();
        let pieces = self.exchange(&call, Give::Each(pieces), Take::Each, Fit::AnyRows)?;
        let mut pieces: Vec<_> =
            pieces.into_iter().map(|(_, piece)| payload.decode(piece).into_values()).collect();
        pieces.insert(call.members.place, mine);
        Ok(pieces)
    }

    /// Brings the bytes of `root`, a member, to all. Only `root` gives bytes; it does not wait for the others.
    ///
    /// # Errors
    /// If the root fails or does not come.
    ///
    /// # Panics
    /// If `root` is no member, or bytes come from another rank than `root`.
    pub fn broadcast(
        &self,
        bytes: Option<Vec<u8>>,
        root: Rank,
        group: impl Into<Group>,
    ) -> Result<Arc<Vec<u8>>, TransportError> {
        assert_eq!(
            bytes.is_some(),
            root == self.rank,
            "the root of a broadcast, and nobody else, gives bytes"
        );
        let call = self.bytes_call(Collective::Broadcast, group.into());
        if let Some(bytes) = bytes {
            let bytes = Arc::new(bytes);
            if call.members.count() > 1 {
                let view = View::whole(Buffer::Bytes(Arc::clone(&bytes)));
                self.exchange(&call, Give::Same(view), Take::Nothing, Fit::AnyBytes)?;
            }
            return Ok(bytes);
        }
        let place = call.members.ranks.iter().position(|&rank| rank == root);
        let take = Take::From(place.expect("the root of a broadcast is a member"));
        let mut views = self.exchange(&call, Give::Nothing, take, Fit::AnyBytes)?;
        let (_, view) = views.pop().expect("a transport brings what was asked for");
        Ok(view.into_bytes())
    }

    /// Brings the bytes of all members to all, in their order.
    ///
    /// # Errors
    /// If a member fails or does not come.
    pub fn all_gather_bytes(
        &self,
        bytes: Vec<u8>,
        group: impl Into<Group>,
    ) -> Result<Vec<Arc<Vec<u8>>>, TransportError> {
        let call = self.bytes_call(Collective::AllGather, group.into());
        let bytes = Arc::new(bytes);
        if call.members.count() == 1 {
            return Ok(vec![bytes]);
        }
        let view = View::whole(Buffer::Bytes(Arc::clone(&bytes)));
        let views = self.exchange(&call, Give::Same(view), Take::Each, Fit::AnyBytes)?;
        let mut all: Vec<_> = views.into_iter().map(|(_, view)| view.into_bytes()).collect();
        all.insert(call.members.place, bytes);
        Ok(all)
    }

    /// Returns when all members have come.
    ///
    /// # Errors
    /// If a member fails or does not come.
    pub fn barrier(&self, group: impl Into<Group>) -> Result<(), TransportError> {
        let call = self.bytes_call(Collective::Barrier, group.into());
        if call.members.count() > 1 {
            let nothing = View::whole(Buffer::from(Vec::<u8>::new()));
            self.exchange(&call, Give::Same(nothing), Take::Each, Fit::AnyBytes)?;
        }
        Ok(())
    }

    fn call(&self, label: Label) -> Call<'_> {
        Call { label, members: self.members(label.group), timeout: self.timeout }
    }

    /// A call that moves no matrices.
    fn bytes_call(&self, collective: Collective, group: Group) -> Call<'_> {
        self.call(Label { collective, group, payload: Payload::F32, shape: [0, 0] })
    }

    /// Exchanges, counts, and checks that all are in the same collective with matrices that fit. Returns the rows that
    /// each sender has, and what it sent.
    fn exchange(
        &self,
        call: &Call<'_>,
        give: Give,
        take: Take,
        fit: Fit,
    ) -> Result<Vec<(usize, View)>, TransportError> {
        let sent = match &give {
            Give::Same(view) => view.length() * (call.members.count() - 1),
            Give::Each(views) => {
                let own = views[call.members.place].length();
                views.iter().map(View::length).sum::<usize>() - own
            }
            Give::To(_, view) => view.length(),
            Give::Nothing => 0,
        };
        let views = self.transport.exchange(call, give, take)?;
        for (place, (label, view)) in call.members.places(take).zip(&views) {
            if !fit.holds(&call.label, label, view.length()) {
                let got = format!("{label}, {} bytes", view.length());
                let cause = Cause::Disagrees { expected: call.label.to_string(), got };
                return Err(TransportError { peer: self.peer(call.members.ranks[place]), cause });
            }
        }
        let received = views.iter().map(|(_, view)| view.length()).sum();
        self.counter.count(call.label.collective, sent, received);
        Ok(views.into_iter().map(|(label, view)| (label.shape[0], view)).collect())
    }

    /// The other members' views, in order of the members: each device gives the next what came from the one before.
    fn pass_around(
        &self,
        call: &Call<'_>,
        mine: View,
        fit: Fit,
    ) -> Result<Vec<(usize, View)>, TransportError> {
        let (members, place) = (call.members.count(), call.members.place);
        let [next, previous] = [1, members - 1].map(|distance| (place + distance) % members);
        let mut label = call.label;
        let mut passing = mine;
        let mut all = vec![None; members];
        for step in 1..members {
            let call = Call { label, members: call.members, timeout: call.timeout };
            let mut came = self.exchange(&call, Give::To(next, passing), Take::From(previous), fit)?;
            let (rows, view) = came.pop().expect("a transport brings what was asked for");
            label.shape[0] = rows;
            passing = view.clone();
            all[(place + members - step) % members] = Some((rows, view));
        }
        Ok(all.into_iter().flatten().collect())
    }
}

/// The rows of a matrix with `cols` columns.
fn rows_of(values: &[f32], cols: usize) -> usize {
    assert!(cols > 0 && values.len().is_multiple_of(cols), "{} values in rows of {cols}", values.len());
    values.len() / cols
}

/// Adds up what the members have, in their order.
fn sum(call: &Call<'_>, mine: View, theirs: Vec<(usize, View)>) -> Vec<f32> {
    let mut parts: Vec<_> = theirs.into_iter().map(|(_, part)| part).collect();
    parts.insert(call.members.place, mine);
    let mut parts = parts.into_iter().map(|part| call.label.payload.decode(part));
    // A group has a member or more.
    let mut sums = parts.next().map(View::into_values).unwrap_or_default();
    for part in parts {
        let mut rest = &mut sums[..];
        for run in part.rows() {
            let (here, after) = rest.split_at_mut(run.len() / 4);
            add(here, run);
            rest = after;
        }
    }
    sums
}

/// Whether an all_reduce of so many bytes goes in one step, in which everyone sends everything to everyone.
pub(crate) fn reduces_at_once(bytes: usize, members: usize) -> bool {
    // One step sends `members - 1` times the bytes, two send twice `members - 1` parts of them.
    bytes / members * (members - 1) * (members - 2) <= BYTES_FOR_A_STEP
}

/// The parts of a matrix of `values` that the members add in an all_reduce of two steps.
pub(crate) fn all_reduce_parts(values: usize, members: usize) -> impl Iterator<Item = Range<usize>> {
    let part = values.div_ceil(members).next_multiple_of(PART_VALUES);
    (0..members).map(move |place| (place * part).min(values)..((place + 1) * part).min(values))
}
