//! The command as the processes of an MPI job: right answers, and how a job ends when one of its ranks does.
#![cfg(feature = "mpi")]

mod support;

use serde_json::Value;
use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use support::{Workplace, floats, tiny, token_ids};

/// Set for all processes of a job, to find them and those that are left.
const JOB: &str = "DSV3_TEST_JOB";
/// Within what a job ends when one of its ranks does.
const END: Duration = Duration::from_secs(10);
const QUESTIONS: [&str; 2] = ["What is 27 + 58?", "What is 12 * 3?"];

/// A job that runs.
struct Job {
    name: String,
    mpirun: Child,
    start: Instant,
}

/// How a job ended.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
    time: Duration,
}

impl Job {
    /// As many processes of the binary.
    fn start(place: &Workplace, processes: usize, args: &[&str]) -> Self {
        Self::launch(place, processes, env!("CARGO_BIN_EXE_dsv3"), args, Stdio::null())
    }

    /// As many shells, each of which becomes a process of the binary: `command` may depend on its rank.
    fn start_shell(place: &Workplace, processes: usize, command: &str) -> Self {
        Self::launch(place, processes, "sh", &["-c", command], Stdio::null())
    }

    fn launch(place: &Workplace, processes: usize, program: &str, args: &[&str], stdin: Stdio) -> Self {
        let start = Instant::now();
        let name = format!("{}-{:?}-{start:?}", std::process::id(), thread::current().id());
        let mut command = Command::new("mpirun");
        // The test place's environment and directory.
        let as_alone = place.command(["generate"]);
        for (name, value) in as_alone.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let mpirun = command
            .args(["--oversubscribe", "--allow-run-as-root", "-n", &processes.to_string(), program])
            .args(args)
            .current_dir(as_alone.get_current_dir().unwrap())
            .env(JOB, &name)
            .env("DSV3", env!("CARGO_BIN_EXE_dsv3"))
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { name, mpirun, start }
    }

    /// A run that would take minutes, when it has begun to answer.
    fn start_long(place: &Workplace, mesh: &str, processes: usize) -> (Self, BufReader<ChildStdout>) {
        let prompts: Vec<_> = (0..3000).map(|number| format!("What is {} + 58?", number % 40)).collect();
        place.file("prompts.json", serde_json::to_string(&prompts).unwrap());
        let args = ["generate", "--mesh", mesh, "--mesh-timeout", "2", "--prompts-file", "prompts.json"];
        let mut job =
            Self::start(place, processes, &[&args[..], &["--checkpoint-jsonl", "done.jsonl"]].concat());
        let mut stdout = BufReader::new(job.mpirun.stdout.take().unwrap());
        stdout.read_line(&mut String::new()).unwrap();
        job.start = Instant::now();
        (job, stdout)
    }

    /// The process of a rank.
    fn rank(&self, rank: usize) -> String {
        let marker = format!("OMPI_COMM_WORLD_RANK={rank}");
        let of_rank = |process: &String| variables(process).any(|variable| variable == marker);
        processes(&self.name).into_iter().find(of_rank).unwrap()
    }

    fn end(mut self) -> Ended {
        let stdout = BufReader::new(self.mpirun.stdout.take().unwrap());
        self.end_with(stdout)
    }

    /// Waits for the end, and asserts that no process is left.
    fn end_with(mut self, mut stdout: BufReader<ChildStdout>) -> Ended {
        let stdout = thread::spawn(move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).unwrap();
            text
        });
        let mut stderr = String::new();
        self.mpirun.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        let code = self.mpirun.wait().unwrap().code();
        let time = self.start.elapsed();
        assert_eq!(processes(&self.name), Vec::<String>::new(), "processes that outlived mpirun: {stderr}");
        Ended { code, stdout: stdout.join().unwrap(), stderr, time }
    }
}

impl Ended {
    #[track_caller]
    fn success(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self
    }

    /// That the job failed in time, and said why in one line of its own.
    #[track_caller]
    fn fails_with(&self, expected: &str) {
        let lines: Vec<_> = self.stderr.lines().filter(|line| line.contains("error: ")).collect();
        let [line] = lines[..] else { panic!("expected one line: {self:#?}") };
        assert!(line.starts_with(&format!("dsv3: error: {expected}")), "expected {expected:?}: {self:#?}");
        assert_eq!(self.code, Some(1), "{self:#?}");
        assert!(self.time < END, "{self:#?}");
    }
}

/// The processes of a job.
fn processes(job: &str) -> Vec<String> {
    let marker = format!("{JOB}={job}");
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.map(|process| process.file_name().to_string_lossy().into_owned())
        .filter(|process| variables(process).any(|variable| variable == marker))
        .collect()
}

/// The environment of a process; nothing for one that has ended.
fn variables(process: &str) -> impl Iterator<Item = String> + use<> {
    let all = fs::read(Path::new("/proc").join(process).join("environ")).unwrap_or_default();
    let all: Vec<_> =
        all.split(|&byte| byte == 0).map(|it| String::from_utf8_lossy(it).into_owned()).collect();
    all.into_iter()
}

fn signal(signal: &str, process: &str) {
    assert!(Command::new("kill").args([signal, process]).status().unwrap().success());
}

fn host() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned()
}

/// What is said of a rank.
fn rank(rank: usize) -> String {
    format!("rank {rank} on {}", host())
}

/// That a run which was cut off has left whole records and no report.
fn nothing_half_written(place: &Workplace) {
    let records = fs::read_to_string(place.path("done.jsonl")).unwrap();
    assert!(records.is_empty() || records.ends_with('\n'), "{records}");
    for record in records.lines() {
        serde_json::from_str::<Value>(record).unwrap();
    }
    let mut files: Vec<_> =
        fs::read_dir(place.path("")).unwrap().map(|file| file.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["cache", "done.jsonl", "prompts.json"]);
}

/// The arguments of a greedy run that rounds nothing.
fn exact<'a>(mesh: &'a str, experts: &'a str) -> Vec<&'a str> {
    let fixed = ["generate", "--mesh", mesh, "--experts", experts, "--temperature", "0", "--json"];
    let exact = ["--kv-cache", "f32", "--arithmetic", "float", "--threads", "1"];
    fixed.into_iter().chain(exact).chain(QUESTIONS).collect()
}

/// The token ids of each line of `--json`.
fn tokens(stdout: &str) -> Vec<Vec<u32>> {
    stdout.lines().map(|line| token_ids(&serde_json::from_str(line).unwrap())).collect()
}

#[test]
fn tokens_are_those_of_one_process() {
    let place = Workplace::new();
    let expected = tokens(&place.run(exact("1x1", "tensor")).success().stdout);
    for (mesh, processes) in [("1x2", 2), ("2x2", 4)] {
        for experts in ["tensor", "expert"] {
            let ended = Job::start(&place, processes, &exact(mesh, experts)).end().success();
            assert_eq!(tokens(&ended.stdout), expected, "{mesh} {experts}");
        }
    }
}

#[test]
fn two_jobs_beside_each_other_do_not_meet() {
    let place = Workplace::new();
    let expected = tokens(&place.run(exact("1x1", "tensor")).success().stdout);
    let jobs = [(); 2].map(|()| Job::start(&place, 2, &exact("1x2", "tensor")));
    for job in jobs {
        assert_eq!(tokens(&job.end().success().stdout), expected);
    }
}

#[test]
fn logits_are_those_of_one_process() {
    let place = Workplace::new();
    place.file("ids.json", format!("{:?}", (2..60).collect::<Vec<u32>>()));
    let args = |mesh, output| ["logits", "--tokens", "ids.json", "--mesh", mesh, "--output", output];
    place.run(args("1x1", "expected")).success();
    Job::start(&place, 4, &args("2x2", "got")).end().success();
    let [expected, got] =
        ["expected", "got"].map(|file| floats(&fs::read(place.path(file)).unwrap(), "logits").1);
    let square = |value: f32| f64::from(value).powi(2);
    let difference: f64 = got.iter().zip(&expected).map(|(got, expected)| square(got - expected)).sum();
    let relative = (difference / expected.iter().map(|&value| square(value)).sum::<f64>()).sqrt();
    assert!(relative <= 1e-5, "{relative:e}");
}

#[test]
fn a_rank_that_is_killed_ends_the_job() {
    for killed in [1, 0] {
        let place = Workplace::new();
        let (job, stdout) = Job::start_long(&place, "1x2", 2);
        signal("-KILL", &job.rank(killed));
        let ended = job.end_with(stdout);
        // Here the launcher says it.
        let said =
            [format!("process rank {killed} "), format!(" on node {} ", host()), "signal 9".to_owned()];
        assert!(ended.stderr.lines().any(|line| said.iter().all(|part| line.contains(part))), "{ended:#?}");
        assert!(!ended.stderr.contains("dsv3: error: "), "{ended:#?}");
        assert_ne!(ended.code, Some(0), "{ended:#?}");
        assert!(ended.time < END, "{ended:#?}");
        nothing_half_written(&place);
    }
}

#[test]
fn a_rank_that_hangs_ends_the_job() {
    for (mesh, processes, stopped) in [("1x2", 2, 1), ("1x2", 2, 0), ("2x2", 4, 3)] {
        let place = Workplace::new();
        let (job, stdout) = Job::start_long(&place, mesh, processes);
        signal("-STOP", &job.rank(stopped));
        job.end_with(stdout).fails_with(&format!("{} did not come to ", rank(stopped)));
        nothing_half_written(&place);
    }
}

#[test]
fn a_user_who_interrupts_ends_the_job() {
    let place = Workplace::new();
    let (job, stdout) = Job::start_long(&place, "1x2", 2);
    signal("-INT", &job.mpirun.id().to_string());
    let ended = job.end_with(stdout);
    assert_ne!(ended.code, Some(0), "{ended:#?}");
    assert!(ended.time < END && !ended.stderr.contains("error: "), "{ended:#?}");
    nothing_half_written(&place);
}

#[test]
fn a_rank_that_does_not_start_ends_the_job() {
    let place = Workplace::new();
    let command =
        "[ $OMPI_COMM_WORLD_RANK = 0 ] || exec sleep 60; exec $DSV3 generate --mesh 1x2 --start-timeout 2 hi";
    let line = format!("{}: the other ranks did not start within 2 s", rank(0));
    Job::start_shell(&place, 2, command).end().fails_with(&line);
}

/// Four ranks, of which some run with other arguments.
fn differing(place: &Workplace, others: &str, args: &str) -> Ended {
    let command = format!(
        "case $OMPI_COMM_WORLD_RANK in {others}) set -- {args};; esac; exec $DSV3 generate --mesh 2x2 hi $@"
    );
    Job::start_shell(place, 4, &command).end()
}

#[test]
fn ranks_that_start_from_something_else_end_the_job() {
    let place = Workplace::new();
    let copy = place.copy_of(&tiny());
    let config = fs::read_to_string(copy.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["rms_norm_eps"] = 1e-3.into();
    fs::write(copy.join("config.json"), config.to_string()).unwrap();
    let difference = format!("{} failed: it starts from something else: the checkpoint is ", rank(1));
    differing(&place, "1|3", "--model copy").fails_with(&difference);
    let difference =
        format!("{} failed: it starts from something else: --format is q8_0, but keep ", rank(2));
    differing(&place, "2", "--format q8_0").fails_with(&difference);
}

#[test]
fn ranks_that_cannot_start_end_the_job() {
    let place = Workplace::new();
    place.file("file", "");
    differing(&place, "1|2|3", "--model nowhere").fails_with(&format!("{} failed: ", rank(1)));
    let cache = format!("{} failed: the cache {} cannot be written", rank(2), place.path("file").display());
    differing(&place, "2|3", &format!("--cache file --model {}", tiny().display())).fails_with(&cache);
    // Rank 0 speaks as if it were alone.
    differing(&place, "*", "--model nowhere").fails_with("");
}

#[test]
fn what_a_job_cannot_run_is_said_once() {
    let place = Workplace::new();
    let sizes = "a 1x2 mesh has 2 devices, this MPI job 4 processes";
    Job::start(&place, 4, &["generate", "--mesh", "1x2", "hi"]).end().fails_with(sizes);
    Job::start(&place, 2, &["config"]).end().fails_with("this command is for one process");
    let ended = Job::start(&place, 2, &["generate", "--bogus"]).end();
    assert_eq!((ended.code, ended.stderr.matches("error: ").count()), (Some(2), 1), "{ended:#?}");
    assert!(ended.stderr.contains("unexpected argument '--bogus'"), "{ended:#?}");
    let ended = Job::start(&place, 2, &["--version"]).end().success();
    assert_eq!(ended.stdout.matches("dsv3").count(), 1, "{ended:#?}");
}

/// A leader may wait longer for its user than ranks wait for each other.
#[test]
fn a_leader_that_waits_for_its_user_is_not_given_up() {
    let place = Workplace::new();
    let pause = Duration::from_millis(2500);
    let args = ["generate", "--mesh", "1x2", "--mesh-timeout", "1"];
    let mut job = Job::launch(&place, 2, env!("CARGO_BIN_EXE_dsv3"), &args, Stdio::piped());
    let mut stdin = job.mpirun.stdin.take().unwrap();
    thread::sleep(pause);
    stdin.write_all(b"What is 27 + 58?").unwrap();
    drop(stdin);
    assert!(job.end().success().stdout.ends_with("27 + 58 = 85\n"));
}

/// Starts a server of as many processes, asks it, has `end` end it, and gives its answer and its end.
fn serve(mesh: &str, processes: usize, end: impl Fn(&Job)) -> (Value, Ended) {
    let place = Workplace::new();
    let exact = ["--kv-cache", "f32", "--arithmetic", "float", "--threads", "1"];
    let args = ["serve", "--port", "0", "--log", "off", "--mesh", mesh];
    let mut job = Job::start(&place, processes, &[&args[..], &exact].concat());
    let mut stderr = BufReader::new(job.mpirun.stderr.take().unwrap());
    let mut said = String::new();
    let address = loop {
        let start = said.len();
        assert!(stderr.read_line(&mut said).unwrap() > 0, "it has ended: {said}");
        let serving = said[start..].strip_prefix("serving ").and_then(|rest| rest.split_once(" at http://"));
        if let Some((_, rest)) = serving {
            break rest.split_whitespace().next().unwrap().to_owned();
        }
    };
    job.mpirun.stderr = Some(stderr.into_inner());
    let body = r#"{"messages": [{"role": "user", "content": "What is 27 + 58?"}], "max_tokens": 80}"#;
    let mut stream = TcpStream::connect(&address).unwrap();
    write!(
        stream,
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    let answer: Value = serde_json::from_str(body).unwrap();
    job.start = Instant::now();
    end(&job);
    (answer["choices"].clone(), job.end())
}

#[test]
fn a_server_answers_as_one_process_and_ends_with_all_ranks_when_told() {
    let tell_leader = |job: &Job| signal("-TERM", &job.rank(0));
    let (expected, ended) = serve("1x1", 1, tell_leader);
    ended.success();
    assert!(expected[0]["message"]["content"].as_str().unwrap().ends_with("= 85"), "{expected}");
    for (mesh, processes) in [("1x2", 2), ("2x2", 4)] {
        let (answer, ended) = serve(mesh, processes, tell_leader);
        assert_eq!(answer, expected, "{mesh}");
        let ended = ended.success();
        assert!(ended.time < END && !ended.stderr.contains("error: "), "{ended:#?}");
    }
}

/// The launcher tells all ranks to end, and ends those that take longer than a second.
#[test]
fn a_user_who_interrupts_a_server_ends_it_and_nothing_failed() {
    let (_, ended) = serve("1x2", 2, |job| signal("-INT", &job.mpirun.id().to_string()));
    assert!(ended.time < END && !ended.stderr.contains("error: "), "{ended:#?}");
}
