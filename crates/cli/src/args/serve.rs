//! `dsv3 serve`.

use super::{DeviceArgs, ModelArgs, OperatorConfigArgs, RunningArgs};
use clap::{Args, ValueEnum};
use std::{path::PathBuf, time::Duration};

/// `dsv3 serve`.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) listen: ListenArgs,
    #[command(flatten)]
    pub(crate) sharing: SharingArgs,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Name the model so to clients; several names are several for one model [default: its directory's name]
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) name: Vec<String>,
    #[command(flatten)]
    pub(crate) running: RunningArgs,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) configs: OperatorConfigArgs,
}

/// Where a server listens, to whom, and what it logs.
#[derive(Debug, Args)]
#[command(next_help_heading = "Listening")]
pub(crate) struct ListenArgs {
    /// Listen at this address; 0.0.0.0 lets other machines in
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub(crate) host: String,
    /// Listen at this port; 0 is any that is free, and is shown
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub(crate) port: u16,
    /// Serve only who sends this key, as `Authorization: Bearer KEY`; may be given several times
    ///
    /// Other users of this machine can see it among the running commands: a file or the environment is better.
    #[arg(long, value_name = "KEY", env = "DSV3_API_KEY", hide_env_values = true,
        value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) api_key: Vec<String>,
    /// Serve also who sends one of the keys in this file, one a line
    #[arg(long, value_name = "FILE")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// Answer also to this name, as a proxy or a name of this machine may have it; may be given several times, and * is any
    ///
    /// A server that listens for this machine alone answers only to localhost and loopback addresses without it: a page of
    /// another site could have its own name lead here.
    #[arg(long, value_name = "NAME", value_parser = host_name)]
    pub(crate) allowed_host: Vec<String>,
    /// Let web pages of this origin ask, as `https://example.org`; may be given several times, and * is any
    #[arg(long, value_name = "ORIGIN")]
    pub(crate) cors_origin: Vec<String>,
    /// Let the chat page show which experts fire, also where the address lets other machines in
    #[arg(long)]
    pub(crate) watch_experts: bool,
    /// How requests are logged to stderr
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = LogArg::Text)]
    pub(crate) log: LogArg,
    /// Log also what was asked: without this, no text of a request is logged
    #[arg(long)]
    pub(crate) log_prompts: bool,
}

/// How the model is shared.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sharing")]
pub(crate) struct SharingArgs {
    /// Run at most N answers at once; others wait
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = positive)]
    pub(crate) sequences: usize,
    /// Let at most N requests wait; more are refused with 429
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = positive)]
    pub(crate) queue: usize,
    /// Cache N tokens of prompts and answers of all requests together [default: four times --context]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) cache_tokens: Option<usize>,
    /// Keep what is cached of prompts in this directory when the server ends, and begin with it the next time
    #[arg(long, value_name = "DIR")]
    pub(crate) cache_state: Option<PathBuf>,
    /// Run at most N tokens of a prompt at once
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = positive)]
    pub(crate) prefill_chunk: usize,
    /// Run less of a prompt at once where others would wait longer than this for their next token
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    pub(crate) max_gap: Duration,
}

/// What one client may take.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitArgs {
    /// Refuse prompts of more tokens [default: the context]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) max_prompt: Option<usize>,
    /// Refuse requests of more bytes
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20, value_parser = positive)]
    pub(crate) max_body: usize,
    /// Accept at most N connections at once
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = positive)]
    pub(crate) max_connections: usize,
    /// End answers that take longer, queueing included [default: none are ended]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) request_timeout: Option<Duration>,
    /// Give up clients that do not send their request, or do not read their answer, for so long
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub(crate) client_timeout: Duration,
    /// When told to end, give answers that have begun so long to finish
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    pub(crate) drain_timeout: Duration,
}

/// How requests are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogArg {
    /// Not
    Off,
    /// A line of text each
    Text,
    /// A JSON object each
    Json,
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|&value| value > 0)
        .ok_or_else(|| "expected a whole number, 1 or more".to_owned())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|&seconds: &f64| seconds > 0.0);
    let duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    duration.filter(|duration| !duration.is_zero()).ok_or_else(|| "expected seconds, more than 0".to_owned())
}

/// A name as `Host` has it, or `*`.
fn host_name(text: &str) -> Result<String, String> {
    match text.is_empty() || text.contains(['/', '@', ' ']) {
        true => Err("expected a name, as `chat.example.org`, or an address".to_owned()),
        false => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_out_of_range_are_refused() {
        for text in ["0", "-1", "x", "", "1e400", "nan"] {
            assert!(positive(text).is_err() && seconds(text).is_err(), "{text}");
        }
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(positive("7"), Ok(7));
    }

    #[test]
    fn a_host_is_a_name_and_no_address_of_a_page() {
        for text in ["", "https://chat.example.org", "chat.example.org/", "me@chat.example.org", "a b"] {
            assert!(host_name(text).is_err(), "{text}");
        }
        for text in ["chat.example.org", "chat.example.org:8080", "[::2]", "*"] {
            assert_eq!(host_name(text).as_deref(), Ok(text));
        }
    }
}
