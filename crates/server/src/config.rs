//! What a server is told when it starts.

use std::time::Duration;

/// How a server listens, and whom it serves.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The address or name to listen at.
    pub host: String,
    /// The port; 0 is any that is free.
    pub port: u16,
    /// Any of these opens the server to who sends it. Empty: anybody is served.
    pub api_keys: Vec<String>,
    /// Names by which the server may be asked for beside `localhost`, loopback addresses and its own; `*` is any. Where it
    /// listens for other machines, and this is empty, it may be asked for by any name.
    pub allowed_hosts: Vec<String>,
    /// Web pages of these origins may ask; `*` is any.
    pub cors_origins: Vec<String>,
    /// Whether clients may watch which experts are chosen.
    pub experts: bool,
    /// What one client may take.
    pub limits: Limits,
    /// How requests are logged.
    pub log: LogFormat,
    /// Whether the texts of requests are logged, too.
    pub log_prompts: bool,
}

/// What one client may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request's body.
    pub body: usize,
    /// Tokens of a prompt; the context's length is a limit anyway.
    pub prompt: usize,
    /// Connections at once.
    pub connections: usize,
    /// How long a request's head, and then its body, may take to come.
    pub read_time: Duration,
    /// How long a client may not read what is sent to it.
    pub write_time: Duration,
    /// How long an answer may take, queueing included. None: as long as it does.
    pub request_time: Option<Duration>,
    /// How long answers may take that have begun when the server is told to end.
    pub drain_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 4 << 20,
            prompt: usize::MAX,
            connections: 1024,
            read_time: Duration::from_secs(30),
            write_time: Duration::from_secs(30),
            request_time: None,
            drain_time: Duration::from_secs(300),
        }
    }
}

impl Default for ServerConfig {
    /// At port 8080 of this machine, for this machine.
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 8080,
            api_keys: Vec::new(),
            allowed_hosts: Vec::new(),
            cors_origins: Vec::new(),
            experts: true,
            limits: Limits::default(),
            log: LogFormat::Text,
            log_prompts: false,
        }
    }
}

/// How requests are logged, to stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Not.
    Off,
    /// A line of text each.
    Text,
    /// A JSON object each.
    Json,
}
