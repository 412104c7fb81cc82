//! The collectives over the processes of an MPI job, and what happens when one of these fails.
//!
//! Started by cargo, this program starts itself under mpirun for each test; started by mpirun, it is a rank.

mod suite;

use dsv3_mesh::{Group, Mesh, MeshShape, Rank, launched_processes};
use std::{
    collections::BTreeMap,
    env, fs,
    io::{Read as _, Write as _},
    panic::{AssertUnwindSafe, catch_unwind},
    process::{Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Set for all processes of a job, to find those that are left.
const JOB: &str = "DSV3_MESH_TEST_JOB";
/// How long ranks wait for each other in the tests of faults.
const TIMEOUT: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    if launched_processes().is_some() {
        return rank(&arguments[0], arguments[1].parse().unwrap());
    }
    if Command::new("mpirun").arg("--version").stdout(Stdio::null()).status().is_err() {
        say("skipped: there is no mpirun (Debian: openmpi-bin)");
        return ExitCode::SUCCESS;
    }
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    let mut failed = false;
    for (name, test) in TESTS {
        if filter.is_some_and(|filter| !name.contains(filter)) {
            continue;
        }
        let start = Instant::now();
        let passed = catch_unwind(AssertUnwindSafe(test)).is_ok();
        failed |= !passed;
        let result = if passed { "ok" } else { "FAILED" };
        say(&format!("test {name} ... {result} ({:.1} s)", start.elapsed().as_secs_f64()));
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The tests, by name.
const TESTS: [(&str, fn()); 9] = [
    ("all_collectives_over_2_processes", || same_as_threads("1x2")),
    ("all_collectives_over_4_processes", || same_as_threads("2x2")),
    ("all_collectives_over_8_processes", || same_as_threads("2x4")),
    ("two_jobs_at_once", two_jobs_at_once),
    ("a_rank_that_is_killed", a_rank_that_is_killed),
    ("a_rank_that_hangs", || names_the_rank("hangs", "did not come to barrier over all devices within 2 s")),
    ("a_rank_that_fails", || names_the_rank("fails", "failed: no such file")),
    ("a_rank_that_panics", || names_the_rank("panics", "panicked")),
    ("a_mesh_of_another_size", a_mesh_of_another_size),
];

/// What a rank does.
fn rank(role: &str, shape: MeshShape) -> ExitCode {
    let mesh = match Mesh::mpi(shape, Duration::from_secs(60)) {
        Ok(mesh) => mesh.with_timeout(TIMEOUT),
        Err(error) => {
            say(&error.to_string());
            return ExitCode::FAILURE;
        }
    };
    let odd = mesh.rank() == Rank(1);
    match role {
        "suite" => {
            let mesh = mesh.with_timeout(Duration::from_secs(60));
            say(&format!("digest {} {:x}", mesh.rank().0, suite::run(&mesh)));
            // Leaves MPI in time with the others.
            mesh.barrier(Group::All).unwrap();
            return ExitCode::SUCCESS;
        }
        "is killed" if odd => {
            mesh.barrier(Group::All).unwrap();
            let pid = std::process::id().to_string();
            Command::new("kill").args(["-9", &pid]).status().unwrap();
        }
        "hangs" if odd => {
            mesh.barrier(Group::All).unwrap();
            thread::sleep(Duration::from_secs(3600));
        }
        "fails" if odd => {
            mesh.barrier(Group::All).unwrap();
            mesh.abort("no such\nfile");
        }
        "panics" if odd => {
            mesh.barrier(Group::All).unwrap();
            panic!("as asked");
        }
        _ => {}
    }
    let error = mesh.barrier(Group::All).and_then(|()| mesh.barrier(Group::All)).unwrap_err();
    mesh.abort_because(error);
    ExitCode::SUCCESS
}

/// How a job ended.
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
    time: Duration,
}

/// Runs this program as the ranks of a job, to its end, and asserts that nothing is left of it.
fn job(role: &str, shape: &str, processes: usize) -> Ended {
    let start = Instant::now();
    let name = format!("{}-{:?}", std::process::id(), start);
    let mut mpirun = Command::new("mpirun")
        .args(["--oversubscribe", "--allow-run-as-root", "-n", &processes.to_string()])
        .arg(env::current_exe().unwrap())
        .args([role, shape])
        .env(JOB, &name)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = mpirun.stdout.take().unwrap();
    let stdout = thread::spawn(move || {
        let mut text = String::new();
        stdout.read_to_string(&mut text).unwrap();
        text
    });
    let mut stderr = String::new();
    mpirun.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    let code = mpirun.wait().unwrap().code();
    let time = start.elapsed();
    let stdout = stdout.join().unwrap();
    assert_eq!(left_of(&name), Vec::<String>::new(), "processes that outlived mpirun");
    Ended { code, stdout, stderr, time }
}

/// The processes of a job.
fn left_of(job: &str) -> Vec<String> {
    let marker = format!("{JOB}={job}");
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter(|process| {
            let environment = fs::read(process.path().join("environ")).unwrap_or_default();
            environment.split(|&byte| byte == 0).any(|variable| variable == marker.as_bytes())
        })
        .map(|process| process.file_name().to_string_lossy().into_owned())
        .collect()
}

fn devices(shape: &str) -> usize {
    shape.parse::<MeshShape>().unwrap().devices()
}

/// The suite passes, and every rank gets the bits that it gets over threads.
fn same_as_threads(shape: &str) {
    let ended = job("suite", shape, devices(shape));
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    let digests: BTreeMap<usize, String> = ended
        .stdout
        .lines()
        .filter_map(|line| line.strip_prefix("digest ")?.split_once(' '))
        .map(|(rank, digest)| (rank.parse().unwrap(), digest.to_owned()))
        .collect();
    let threads = thread::scope(|scope| {
        let meshes = Mesh::threads(shape.parse().unwrap()).into_iter();
        let ranks: Vec<_> = meshes.map(|mesh| scope.spawn(move || suite::run(&mesh))).collect();
        ranks.into_iter().map(|rank| format!("{:x}", rank.join().unwrap())).enumerate().collect()
    });
    assert_eq!(digests, threads);
}

fn two_jobs_at_once() {
    thread::scope(|scope| {
        let other = scope.spawn(|| same_as_threads("1x2"));
        same_as_threads("1x2");
        other.join().unwrap();
    });
}

/// One line of this program names the rank, its host and the cause; the job fails, and soon.
fn names_the_rank(role: &str, cause: &str) {
    let Ended { code, stderr, time, .. } = job(role, "2x2", 4);
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let expected = format!("rank 1 on {} {cause}", host.trim());
    let lines: Vec<_> = stderr.lines().filter(|line| line.contains("dsv3: error: ")).collect();
    assert_eq!(lines.len(), 1, "{stderr}");
    assert_eq!(lines[0], format!("dsv3: error: {expected}"), "{stderr}");
    assert_ne!(code, Some(0));
    assert!(time < Duration::from_secs(10), "{time:?}");
}

/// Here mpirun itself sees the end, says whose, and ends the others.
fn a_rank_that_is_killed() {
    let Ended { code, stderr, time, .. } = job("is killed", "2x2", 4);
    assert!(stderr.contains("process rank 1 ") && stderr.contains("signal 9"), "{stderr}");
    assert_ne!(code, Some(0));
    assert!(time < Duration::from_secs(10), "{time:?}");
}

fn a_mesh_of_another_size() {
    let Ended { code, stdout, .. } = job("suite", "2x2", 2);
    assert!(stdout.contains("a 2x2 mesh has 4 devices, this MPI job 2 processes"), "{stdout}");
    assert_ne!(code, Some(0));
}

fn say(line: &str) {
    std::io::stdout().write_all(format!("{line}\n").as_bytes()).unwrap();
}
