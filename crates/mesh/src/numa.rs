//! The nodes of this machine: cores with memory of their own. A device on CPUs is best one of them.

use std::{fs, io, path::Path, sync::OnceLock, thread};

/// A node: its cores, by the system's numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Those of its cores that this process may use, in order.
    pub cores: Vec<usize>,
}

/// The nodes whose cores this process may use, in order. Where the system does not tell, one with all cores.
///
/// They are those of the first call: a thread that [stays](stay_on) on a node would see that one only.
pub fn nodes() -> &'static [Node] {
    static NODES: OnceLock<Vec<Node>> = OnceLock::new();
    NODES.get_or_init(|| nodes_of(Path::new("/sys/devices/system/node"), &usable_cores()))
}

/// The node that a device runs on, of `devices` that share `nodes`: as many devices on each node as can be.
pub fn node_of(nodes: &[Node], devices: usize, device: usize) -> &Node {
    assert!(device < devices, "device {device} of {devices}");
    &nodes[device * nodes.len() / devices]
}

/// Keeps this thread, and those that it starts from now on, on a node's cores.
///
/// # Errors
/// What the system says where it refuses.
#[cfg(target_os = "linux")]
pub fn stay_on(node: &Node) -> io::Result<()> {
    let mut cores = rustix::thread::CpuSet::new();
    node.cores.iter().for_each(|&core| cores.set(core));
    Ok(rustix::thread::sched_setaffinity(None, &cores)?)
}

/// Keeps this thread on a node's cores, where the system has a way to do so: this one has none.
///
/// # Errors
/// Always.
#[cfg(not(target_os = "linux"))]
pub fn stay_on(_: &Node) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Cores that this host has, whether or not this process may use them.
pub(crate) fn all_cores() -> usize {
    let text = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    parse(&text).map_or(0, |cores| cores.len())
}

fn nodes_of(system: &Path, usable: &[usize]) -> Vec<Node> {
    let read = |file: &str| parse(&fs::read_to_string(system.join(file)).ok()?);
    // Not `has_cpu`: a container may hide it, and a node without usable cores falls out below.
    let numbers = read("online").unwrap_or_default();
    let of = |number| {
        let cores = read(&format!("node{number}/cpulist"))?;
        let cores: Vec<_> = cores.into_iter().filter(|core| usable.contains(core)).collect();
        (!cores.is_empty()).then_some(Node { cores })
    };
    let nodes: Vec<_> = numbers.into_iter().filter_map(of).collect();
    let known: usize = nodes.iter().map(|node| node.cores.len()).sum();
    // A core that lies nowhere would be lost: then the system tells nothing of use.
    if known == usable.len() { nodes } else { vec![Node { cores: usable.to_vec() }] }
}

#[cfg(target_os = "linux")]
fn usable_cores() -> Vec<usize> {
    match rustix::thread::sched_getaffinity(None) {
        Ok(cores) => (0..rustix::thread::CpuSet::MAX_CPU).filter(|&core| cores.is_set(core)).collect(),
        Err(_) => counted_cores(),
    }
}

#[cfg(not(target_os = "linux"))]
fn usable_cores() -> Vec<usize> {
    counted_cores()
}

fn counted_cores() -> Vec<usize> {
    (0..thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)).collect()
}

/// A list of numbers as the kernel writes it: `0-3,8-11`. None where it is no such list.
fn parse(text: &str) -> Option<Vec<usize>> {
    /// More cores or nodes than a machine has, and few enough to list.
    const MOST: usize = 1 << 16;
    let mut numbers = Vec::new();
    for range in text.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse().ok()?, last.parse::<usize>().ok().filter(|&last| last < MOST)?);
        numbers.extend(first..=last);
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory as Linux shows its nodes.
    fn system(online: &str, cores: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("online"), online).unwrap();
        for (number, cores) in cores.iter().enumerate() {
            let node = dir.path().join(format!("node{number}"));
            fs::create_dir(&node).unwrap();
            fs::write(node.join("cpulist"), cores).unwrap();
        }
        dir
    }

    fn cores(nodes: &[Node]) -> Vec<&[usize]> {
        nodes.iter().map(|node| &node.cores[..]).collect()
    }

    #[test]
    fn nodes_have_the_cores_that_may_be_used() {
        let two = system("0-1\n", &["0-1,4-5\n", "2-3,6-7\n"]);
        let all: Vec<_> = (0..8).collect();
        assert_eq!(cores(&nodes_of(two.path(), &all)), [[0, 1, 4, 5], [2, 3, 6, 7]]);
        assert_eq!(cores(&nodes_of(two.path(), &[1, 2, 3])), [&[1][..], &[2, 3]]);
        assert_eq!(cores(&nodes_of(two.path(), &[2])), [[2]], "a node without cores to use is none");
        // Memory without cores.
        assert_eq!(cores(&nodes_of(system("0-1", &["0-1", ""]).path(), &[0, 1])), [[0, 1]]);
    }

    #[test]
    fn a_system_that_does_not_tell_has_one_node() {
        let nowhere = tempfile::tempdir().unwrap();
        assert_eq!(cores(&nodes_of(nowhere.path(), &[0, 1, 2])), [[0, 1, 2]]);
        for (online, lists) in [("0-1", &["0"][..]), ("many", &["0-2"]), ("0", &["0-99999999999"])] {
            assert_eq!(cores(&nodes_of(system(online, lists).path(), &[0, 1, 2])), [[0, 1, 2]]);
        }
        assert!(!nodes().is_empty());
    }

    #[test]
    fn devices_lie_evenly_on_nodes() {
        let nodes: Vec<_> = (0..2).map(|node| Node { cores: vec![node] }).collect();
        let of = |devices| {
            (0..devices).map(|device| node_of(&nodes, devices, device).cores[0]).collect::<Vec<_>>()
        };
        assert_eq!((of(1), of(2), of(4), of(3)), (vec![0], vec![0, 1], vec![0, 0, 1, 1], vec![0, 0, 1]));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_thread_stays_where_it_is_told_and_its_children_with_it() {
        let first = Node { cores: vec![usable_cores()[0]] };
        thread::spawn(move || {
            stay_on(&first).unwrap();
            assert_eq!(thread::spawn(usable_cores).join().unwrap(), first.cores);
        })
        .join()
        .unwrap();
    }
}
