//! `dsv3 serve` with the embedded model, over sockets.

mod support;

use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, ChildStderr, Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use support::{Run, Workplace};

/// A server that runs, and is killed if a test forgets it.
struct Server {
    child: Child,
    address: String,
    stderr: Option<BufReader<ChildStderr>>,
    said: String,
}

impl Server {
    /// Starts one at any port, and waits until it serves.
    fn start(place: &Workplace, args: &[&str]) -> Self {
        let mut server = Self::begin(place, args);
        while server.address.is_empty() {
            let line = server.line();
            let address = line.strip_prefix("serving ").and_then(|rest| rest.split_once(" at http://"));
            if let Some((_, rest)) = address {
                server.address = rest.split_whitespace().next().unwrap().to_owned();
            }
        }
        server
    }

    fn begin(place: &Workplace, args: &[&str]) -> Self {
        let mut command = place.command(["serve", "--port", "0"].iter().chain(args));
        command.env_remove("DSV3_API_KEY").stderr(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stderr = child.stderr.take().map(BufReader::new);
        Self { child, address: String::new(), stderr, said: String::new() }
    }

    /// The next line of its notes.
    fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self.stderr.as_mut().unwrap().read_line(&mut line).unwrap();
        assert!(read > 0, "it has ended: {}", self.said);
        self.said += &line;
        line
    }

    /// A request over a connection of its own.
    fn open(&self, method: &str, path: &str, body: &str) -> Answer {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        Answer(BufReader::new(stream))
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        self.open("POST", path, &body.to_string())
    }

    fn json(&self, path: &str, body: &Value) -> Value {
        let text = self.post(path, body).rest();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{text}");
        serde_json::from_str(body).unwrap()
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// Waits until it has ended.
    fn wait(mut self) -> Run {
        let mut stderr = self.stderr.take().unwrap();
        let mut rest = String::new();
        stderr.read_to_string(&mut rest).unwrap();
        let code = self.child.wait().unwrap().code().expect("it ended by itself");
        Run { code, stdout: String::new(), stderr: std::mem::take(&mut self.said) + &rest }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is sent back.
struct Answer(BufReader<TcpStream>);

impl Answer {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line
    }

    /// Reads up to the next event of a stream.
    fn next_event(&mut self) {
        loop {
            let line = self.line();
            assert!(!line.is_empty(), "the stream goes on");
            if line.starts_with("data: ") {
                return;
            }
        }
    }

    fn rest(mut self) -> String {
        let mut text = String::new();
        self.0.read_to_string(&mut text).unwrap();
        text
    }
}

fn question(more: &Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "What is 27 + 58?"}]});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

const CHAT: &str = "/v1/chat/completions";

#[test]
fn a_question_is_answered_whole_and_streamed_and_the_server_ends_when_told() {
    let place = Workplace::new();
    let server = Server::start(&place, &[]);
    assert!(server.said.contains("greedy; context 2048"), "{}", server.said);
    assert!(server.open("GET", "/health", "").rest().starts_with("HTTP/1.1 200"));
    let answer = server.json(CHAT, &question(&json!({})));
    assert_eq!(
        (&answer["model"], &answer["choices"][0]["finish_reason"]),
        (&json!("dsv3-tiny"), &json!("stop"))
    );
    assert!(answer["choices"][0]["message"]["content"].as_str().unwrap().ends_with("= 85"), "{answer}");
    let stream = server.post(CHAT, &question(&json!({"stream": true}))).rest();
    assert!(stream.contains("text/event-stream") && stream.contains("data: [DONE]"), "{stream}");
    let refused = server.post(CHAT, &question(&json!({"temperature": -1}))).rest();
    assert!(
        refused.starts_with("HTTP/1.1 400") && refused.contains("\"param\":\"temperature\""),
        "{refused}"
    );
    server.signal("INT");
    let run = server.wait().success();
    assert!(run.stderr.contains("answered") && !run.stderr.contains("What is 27"), "{}", run.stderr);
}

#[test]
fn a_stream_is_finished_before_the_server_ends_and_a_second_signal_does_not_wait() {
    let place = Workplace::new();
    let server = Server::start(&place, &[]);
    let long = question(
        &json!({"stream": true, "temperature": 50, "ignore_eos": true, "max_tokens": 300, "seed": 1}),
    );
    let mut stream = server.post(CHAT, &long);
    stream.next_event();
    server.signal("TERM");
    let rest = stream.rest();
    assert!(rest.contains("\"finish_reason\":\"length\"") && rest.contains("data: [DONE]"), "it is finished");
    server.wait().success();

    let server = Server::start(&place, &[]);
    let long = question(&json!({"stream": true, "temperature": 50, "ignore_eos": true, "n": 16, "seed": 1}));
    let mut stream = server.post(CHAT, &long);
    stream.next_event();
    server.signal("TERM");
    // Two signals at once would be one.
    while TcpStream::connect(&server.address).is_ok() {
        thread::sleep(Duration::from_millis(10));
    }
    let start = Instant::now();
    server.signal("TERM");
    server.wait().success();
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn what_is_cached_outlives_the_server() {
    let place = Workplace::new();
    let messages = json!([{"role": "system", "content": "You add whole numbers. ".repeat(12)},
        {"role": "user", "content": "What is 27 + 58?"}]);
    let body = json!({"messages": messages, "max_tokens": 100});
    let cached = |answer: &Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    let server = Server::start(&place, &["--cache-state", "state"]);
    let first = server.json(CHAT, &body);
    server.signal("TERM");
    let run = server.wait().success();
    assert!(run.stderr.contains("the cache begins empty") && run.stderr.contains("saved "), "{}", run.stderr);

    let server = Server::start(&place, &["--cache-state", "state"]);
    assert!(server.said.contains("restored "), "{}", server.said);
    let second = server.json(CHAT, &body);
    assert_eq!(first["choices"], second["choices"]);
    assert!(cached(&first) == 0 && cached(&second) > 0, "{second}");
    drop(server);

    // What another model, or the same in another form, has cached is of no use.
    let server = Server::start(&place, &["--cache-state", "state", "--kv-cache", "f32"]);
    assert!(server.said.contains("the cache begins empty"), "{}", server.said);
    assert_eq!(cached(&server.json(CHAT, &body)), 0);
}

#[test]
fn over_a_mesh_the_answers_are_the_same() {
    let place = Workplace::new();
    let ask = |args: &[&str]| {
        let server = Server::start(&place, args);
        let answer = server.json(CHAT, &question(&json!({"max_tokens": 80})))["choices"].clone();
        server.signal("TERM");
        let run = server.wait().success();
        assert!(!run.stderr.contains("error"), "all ranks end well: {}", run.stderr);
        answer
    };
    assert_eq!(ask(&[]), ask(&["--mesh", "1x2", "--threads", "1"]));
}

#[test]
fn keys_come_from_a_file_and_a_place_that_is_taken_is_named() {
    let place = Workplace::new();
    place.file("keys", "secret\n\nother\n");
    let server = Server::start(&place, &["--api-key-file", "keys"]);
    assert!(server.open("GET", "/v1/models", "").rest().starts_with("HTTP/1.1 401"));
    let port = server.address.rsplit(':').next().unwrap().to_owned();
    place.run(["serve", "--port", &port]).fails_with(&[&format!("127.0.0.1:{port}"), "in use"]);
    place.file("none", "\n");
    place.run(["serve", "--api-key-file", "none"]).fails_with(&["none: expected a key a line"]);
    place.run(["serve", "--sequences", "0"]).is_usage_error("--sequences");
    fs::create_dir(place.path("empty")).unwrap();
    let run = place.run(["serve", "--port", "0", "--model", "empty"]);
    let line = run.stderr.lines().last().unwrap_or_default();
    assert!(run.code == 1 && line.contains("config.json"), "{run:#?}");
}
