//! The wall between collectives and what carries their bytes.

use crate::{Cause, Collective, Group, Payload, Peer, Rank, TransportError, view::View};
use std::{fmt, time::Duration};

/// How ranks reach each other: the one thing that a new transport brings.
pub trait Transport: Send + Sync {
    /// Gives views to members of a group and takes one from each of those that `take` names, in their order. Returns
    /// when what is to be taken is there. What one member gives another in a group arrives in the order given.
    ///
    /// A rank makes one call at a time; a second waits for the first.
    ///
    /// # Errors
    /// If a member is gone, has failed, or does not come within the call's timeout.
    fn exchange(&self, call: &Call<'_>, give: Give, take: Take)
    -> Result<Vec<(Label, View)>, TransportError>;

    /// Makes all ranks' calls fail at once, and tells them why. `shared` says that other ranks have this error, too, and
    /// call this for it.
    fn fail(&self, error: TransportError, shared: bool);

    /// The name of a rank's host, where ranks may run on several.
    fn host(&self, rank: Rank) -> Option<String>;
}

/// The devices of a group that meet, as one of them sees them.
#[derive(Clone, Debug)]
pub struct Members {
    /// The group.
    pub group: Group,
    /// Their ranks, in order.
    pub ranks: Vec<Rank>,
    /// The caller's place among them.
    pub place: usize,
}

impl Members {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.ranks.len()
    }

    /// The places of those that `take` names.
    pub fn places(&self, take: Take) -> impl Iterator<Item = usize> + use<> {
        let (places, own) = match take {
            Take::Each => (0..self.count(), self.place),
            Take::From(place) => (place..place + 1, self.place),
            Take::Nothing => (0..0, self.place),
        };
        places.filter(move |&place| place != own)
    }
}

/// One exchange.
#[derive(Debug)]
pub struct Call<'a> {
    /// What is sent along with each view.
    pub label: Label,
    /// Who meets.
    pub members: &'a Members,
    /// How long to wait for the others.
    pub timeout: Duration,
}

impl Call<'_> {
    /// The collective and who meets in it.
    pub fn name(&self) -> String {
        self.label.name()
    }
}

/// What a rank gives. Its own share is never sent.
#[derive(Debug)]
pub enum Give {
    /// The same to every other member.
    Same(View),
    /// One view for each member, in their order.
    Each(Vec<View>),
    /// A view for the member at one place.
    To(usize, View),
    /// Nothing.
    Nothing,
}

impl Give {
    /// What each other member gets: its place, and the view.
    pub fn into_views(self, members: &Members) -> Vec<(usize, View)> {
        let mut views: Vec<_> = match self {
            Self::Same(view) => (0..members.count()).map(|place| (place, view.clone())).collect(),
            Self::Each(views) => {
                assert_eq!(views.len(), members.count(), "one view for each member");
                views.into_iter().enumerate().collect()
            }
            Self::To(place, view) => vec![(place, view)],
            Self::Nothing => Vec::new(),
        };
        views.retain(|&(place, _)| place != members.place);
        views
    }
}

/// From whom a rank takes.
#[derive(Clone, Copy, Debug)]
pub enum Take {
    /// From every other member.
    Each,
    /// From the member at one place.
    From(usize),
    /// From nobody.
    Nothing,
}

/// What a view is, as its sender says: ranks that are not in the same collective tell by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// The collective.
    pub collective: Collective,
    /// Over which devices.
    pub group: Group,
    /// The form of the values.
    pub payload: Payload,
    /// The shape of the sender's matrix `[rows, cols]`.
    pub shape: [usize; 2],
}

impl Label {
    /// The collective and who meets in it.
    pub fn name(self) -> String {
        format!("{} over {}", self.collective, self.group)
    }

    /// The label as three numbers.
    pub fn to_words(self) -> [u64; 3] {
        let place = |found: Option<usize>| found.expect("each variant is listed") as u64;
        let collective = place(Collective::EACH.iter().position(|&each| each == self.collective));
        let payload = place(Payload::EACH.iter().position(|&each| each == self.payload));
        let kind = collective << 16 | (self.group.index() as u64) << 8 | payload;
        [kind, self.shape[0] as u64, self.shape[1] as u64]
    }

    /// The label of three numbers; none if they are no label's.
    pub fn from_words([kind, rows, cols]: [u64; 3]) -> Option<Self> {
        let [collective, group, payload] =
            [kind >> 16, kind >> 8 & 0xff, kind & 0xff].map(|part| part as usize);
        Some(Self {
            collective: *Collective::EACH.get(collective)?,
            group: *Group::EACH.get(group)?,
            payload: *Payload::EACH.get(payload)?,
            shape: [rows.try_into().ok()?, cols.try_into().ok()?],
        })
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [rows, cols] = self.shape;
        let payload = match self.payload {
            Payload::F32 => "f32",
            Payload::Bf16 => "bf16",
            Payload::Bf8 => "bf8",
        };
        write!(f, "{} over {} of [{rows}, {cols}] in {payload}", self.collective, self.group)
    }
}

/// The transport of a mesh of one device, which is alone in each of its groups and so never exchanges anything.
#[derive(Debug)]
pub struct SingleDevice;

impl Transport for SingleDevice {
    fn exchange(&self, call: &Call<'_>, _: Give, _: Take) -> Result<Vec<(Label, View)>, TransportError> {
        let peer = Peer { rank: call.members.ranks[call.members.place], host: None };
        Err(TransportError { peer, cause: Cause::Broken(format!("{} of one device", call.name())) })
    }

    fn fail(&self, _: TransportError, _: bool) {}

    fn host(&self, _: Rank) -> Option<String> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_survive_their_words_and_garbage_is_no_label() {
        for (index, collective) in Collective::EACH.into_iter().enumerate() {
            let (group, payload) = (Group::EACH[index % 3], Payload::EACH[(index + 1) % 3]);
            let label = Label { collective, group, payload, shape: [index, 7 * index] };
            assert_eq!(Label::from_words(label.to_words()), Some(label));
        }
        for kind in [3, 3 << 8, 99 << 16, u64::MAX] {
            assert_eq!(Label::from_words([kind, 0, 0]), None);
        }
    }
}
