//! How long a step takes on given machines: what must be read and computed, and what must move between devices.

use crate::collectives::PlannedCollective;
use dsv3_mesh::{MeshShape, Moved, Rank, measure::Cost};

/// The machines that a mesh lies on: equal hosts, which share its devices evenly, in order of rank.
#[derive(Clone, Copy, Debug)]
pub struct Machines {
    /// How many there are.
    pub hosts: usize,
    /// Bytes in a second that a host reads from its memory.
    pub read: f64,
    /// Operations in a second that a host does, a multiply-add being two.
    pub flops: f64,
    /// A collective between devices of one host.
    pub inside: Cost,
    /// A collective between hosts: its time, and the bytes that a host's link carries in a second, each way.
    pub between: Cost,
}

/// What is to be done in a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Bytes that all devices of a host read, weights and what is cached: they share its memory, and who has less to read
    /// leaves more of it to the others.
    pub host_bytes: f64,
    /// Operations of a device, whose cores are its own.
    pub flops: f64,
}

/// The time of a step in seconds, by what takes it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepTime {
    /// To read what is read.
    pub read: f64,
    /// To compute what is computed; hides behind reading, or reading behind it.
    pub compute: f64,
    /// Until collectives of no bytes are done.
    pub latency: f64,
    /// Until the bytes of the collectives have moved.
    pub transfer: f64,
}

impl StepTime {
    /// The time of the step: nothing that moves is taken to hide behind what is computed, which waits for it.
    pub fn seconds(&self) -> f64 {
        self.read.max(self.compute) + self.exchange()
    }

    /// The time that devices exchange.
    pub fn exchange(&self) -> f64 {
        self.latency + self.transfer
    }
}

impl Machines {
    /// The time that a rank takes for a step. A host's devices share its cores and its link evenly.
    ///
    /// # Panics
    /// If the mesh's devices do not divide over the hosts.
    pub fn time(
        &self,
        (mesh, rank): (MeshShape, Rank),
        work: Work,
        collectives: &[PlannedCollective],
    ) -> StepTime {
        assert!(mesh.devices().is_multiple_of(self.hosts), "{mesh} devices on {} hosts", self.hosts);
        let neighbours = mesh.devices() / self.hosts;
        let share = neighbours as f64;
        let mut time = StepTime {
            read: work.host_bytes / self.read,
            compute: work.flops * share / self.flops,
            ..StepTime::default()
        };
        for planned in collectives {
            let Moved { exchanges, sent, received } = planned.moved_in_all();
            let bytes = sent.max(received) as f64;
            let members = mesh.ranks(planned.group, rank);
            let host = |rank: Rank| rank.0 / neighbours;
            let away = members.iter().filter(|&&other| host(other) != host(rank)).count();
            if away == 0 {
                time.latency += exchanges as f64 * self.inside.seconds;
                time.transfer += bytes / self.inside.bytes_per_second;
            } else {
                // What goes to devices of other hosts goes over the link, which all devices of this host use at once.
                let outside = bytes * away as f64 / (members.len() - 1) as f64;
                time.latency += exchanges as f64 * self.between.seconds;
                time.transfer += outside * share / self.between.bytes_per_second;
            }
        }
        time
    }
}

/// The share of the visited experts that the busiest of `devices` holds on average, where each of `visited` experts lies on
/// any of them, whatever the others do: all of one, 1 / devices of very many.
pub fn busiest_share(visited: f64, devices: usize) -> f64 {
    /// Experts whose number is so large that chance evens out; probabilities of more come near what an f64 holds.
    const MANY: usize = 900;
    let experts = visited.round().max(1.0) as usize;
    if devices == 1 || experts > MANY {
        return 1.0 / devices as f64;
    }
    // The expected maximum is the sum over m of P(maximum > m); nobody can hold less than the mean.
    let least = experts.div_ceil(devices);
    let more: f64 = (least..experts)
        .map(|most| 1.0 - all_hold_at_most(most, experts, devices))
        .take_while(|&p| p > 1e-9)
        .sum();
    (least as f64 + more) / experts as f64
}

/// The probability that none of the devices holds more than `most` of `experts`.
fn all_hold_at_most(most: usize, experts: usize, devices: usize) -> f64 {
    // Of so many experts on as many devices as were counted yet: one at first.
    let mut holds: Vec<f64> = (0..=experts).map(|held| if held <= most { 1.0 } else { 0.0 }).collect();
    for count in 2..=devices {
        let one = 1.0 / count as f64;
        let of_more = (0..=experts).map(|held| {
            // One device takes some of them, by the binomial distribution, the others what is left.
            let mut probability = (1.0 - one).powi(held as i32);
            let mut sum = 0.0;
            for taken in 0..=most.min(held) {
                sum += probability * holds[held - taken];
                probability *= (held - taken) as f64 / (taken + 1) as f64 * one / (1.0 - one);
            }
            sum
        });
        holds = of_more.collect();
    }
    holds[experts]
}

#[cfg(test)]
mod tests {
    use super::*;
    use dsv3_mesh::{Axis, Collective, Group};

    fn machines(hosts: usize) -> Machines {
        Machines {
            hosts,
            read: 100.0,
            flops: 1000.0,
            inside: Cost { seconds: 1.0, bytes_per_second: 50.0 },
            between: Cost { seconds: 10.0, bytes_per_second: 5.0 },
        }
    }

    fn collective(group: Group, bytes: u64) -> PlannedCollective {
        let moved = Moved { exchanges: 1, sent: bytes, received: bytes / 2 };
        PlannedCollective { name: "x".to_owned(), collective: Collective::AllGather, group, times: 2, moved }
    }

    #[test]
    fn a_step_takes_what_its_parts_take() {
        let at = ("2x2".parse().unwrap(), Rank(1));
        let work = Work { host_bytes: 400.0, flops: 400.0 };
        let columns = [collective(Axis::Columns.into(), 30)];
        // On one host, which four devices share.
        let time = machines(1).time(at, work, &columns);
        let expected = StepTime { read: 4.0, compute: 1.6, latency: 2.0, transfer: 60.0 / 50.0 };
        assert_eq!(time, expected);
        assert!((time.seconds() - 7.2).abs() < 1e-12);
        // On two hosts, a row on each: rows meet inside, columns between, at twice the bytes of a device.
        let time = machines(2).time(at, work, &columns);
        assert_eq!((time.compute, time.latency, time.transfer), (0.8, 2.0, 60.0 / 50.0));
        let time = machines(2).time(at, work, &[collective(Axis::Rows.into(), 30)]);
        assert_eq!((time.latency, time.transfer), (20.0, 60.0 * 2.0 / 5.0));
        // Of all others two of three are away.
        let time = machines(2).time(at, work, &[collective(Group::All, 30)]);
        assert!((time.transfer - 40.0 * 2.0 / 5.0).abs() < 1e-12);
    }

    #[test]
    fn the_busiest_device_of_few_experts_holds_more_than_its_part() {
        assert_eq!(busiest_share(8.0, 1), 1.0);
        assert!((busiest_share(1.0, 4) - 1.0).abs() < 1e-12);
        // Two experts on two devices: both on one in half of the cases. Three on two: all on one in a quarter.
        assert!((busiest_share(2.0, 2) - 0.75).abs() < 1e-12);
        assert!((busiest_share(3.0, 2) - (0.25 + 0.75 * 2.0 / 3.0)).abs() < 1e-12);
        assert!((busiest_share(400.0, 2) - 0.5).abs() < 0.03);
        assert!((busiest_share(10_000.0, 2) - 0.5).abs() < 0.01);
    }
}
