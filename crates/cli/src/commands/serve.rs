//! `dsv3 serve`: a model for many, over HTTP.

use super::generate::settings;
use crate::{
    args::{ListenArgs, LogArg, ModelArgs, PrecisionArgs, ServeArgs, SharingArgs},
    model::{ModelPlace, OpenModel},
    operator_configs::OperatorConfigs,
    output::{count, note},
    session::{Room, Session, cache_fingerprint},
};
use anyhow::{Context, Result, bail};
use dsv3_engine::{
    CacheReport, CacheState, ChatTemplate, EngineConfig, EngineThread, GenerationConfig, Reuse, Tokenizer,
};
use dsv3_server::{Limits, Loaded, LogFormat, ModelInfo, ServeError, Server, ServerConfig};
use indicatif::DecimalBytes;
use std::{fs, path::Path, sync::Arc, time::Instant};

/// The context where no option says otherwise: as much as most conversations need, and its cache is small beside any
/// weights.
const DEFAULT_CONTEXT: usize = 32_768;
/// Contexts that are cached where no option says otherwise.
const DEFAULT_CONTEXTS: usize = 4;
/// The name of the embedded model.
const EMBEDDED_NAME: &str = "dsv3-tiny";

/// Runs the command.
pub(crate) fn run(args: ServeArgs) -> Result<()> {
    let start = Instant::now();
    let server = Server::bind(server_config(&args)?).map_err(one_error)?;
    let address = server.address();
    note(format_args!("listening at http://{address}; loading the model"));
    let ended = server.run(
        move || load(&args),
        |model| {
            let (names, seconds) = (model.names.join(", "), start.elapsed().as_secs_f64());
            note(format_args!("serving {names} at http://{address} after {seconds:.1} s; Ctrl-C ends"));
        },
    );
    match ended.map_err(one_error)?.saved {
        None => {}
        Some(Ok(CacheReport { pages, bytes })) => {
            let pages = count(pages as u64, "page");
            note(format_args!("saved {pages} of the cache ({})", DecimalBytes(bytes)));
        }
        Some(Err(error)) => note(format_args!("warning: the cache is not saved: {error}")),
    }
    Ok(())
}

fn one_error(error: ServeError<anyhow::Error>) -> anyhow::Error {
    match error {
        ServeError::Load(error) => error,
        ServeError::Socket { address, source } => anyhow::Error::from(source).context(address),
        ServeError::Engine(message) => anyhow::anyhow!("the engine has failed: {message}"),
    }
}

fn server_config(args: &ServeArgs) -> Result<ServerConfig> {
    let ListenArgs { host, port, log_prompts, allowed_host, cors_origin, watch_experts, .. } = &args.listen;
    let api_keys = api_keys(&args.listen)?;
    if api_keys.is_empty() && !is_loopback(host) {
        note(format_args!("warning: anybody who can reach {host} is served: --api-key-file names who may"));
    }
    let limits = &args.limits;
    Ok(ServerConfig {
        host: host.clone(),
        port: *port,
        api_keys,
        allowed_hosts: allowed_host.clone(),
        cors_origins: cors_origin.clone(),
        experts: *watch_experts || is_loopback(host),
        limits: Limits {
            body: limits.max_body,
            prompt: limits.max_prompt.unwrap_or(usize::MAX),
            connections: limits.max_connections,
            read_time: limits.client_timeout,
            write_time: limits.client_timeout,
            request_time: limits.request_timeout,
            drain_time: limits.drain_timeout,
        },
        log: match args.listen.log {
            LogArg::Off => LogFormat::Off,
            LogArg::Text => LogFormat::Text,
            LogArg::Json => LogFormat::Json,
        },
        log_prompts: *log_prompts,
    })
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

/// The keys from everywhere.
fn api_keys(args: &ListenArgs) -> Result<Vec<String>> {
    let mut keys = args.api_key.clone();
    if let Some(path) = &args.api_key_file {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        // An empty file would open the server to all.
        if lines.is_empty() {
            bail!("{}: expected a key a line, got none", path.display());
        }
        keys.extend(lines.into_iter().map(str::to_owned));
    }
    Ok(keys)
}

/// Opens the model on a thread of its own, ready to be asked.
fn load(args: &ServeArgs) -> Result<Loaded> {
    let place = ModelPlace::resolve(&args.model)?;
    let model = OpenModel::open(&place)?;
    let layout = args.device.mesh.layout.layout();
    // The same request is to give the same tokens, whatever runs beside it, unless speed is worth more.
    let precision = args.running.precision.or_repeatable();
    let configs = OperatorConfigs::open(&model, layout, &args.configs, precision)?;
    let tokenizer = Arc::new(Tokenizer::from_dir(model.dir(), model.hf.vocab_size)?);
    let template = ChatTemplate::from_dir(model.dir())?;
    if template.is_none() {
        note(format_args!("the model has no chat template: /v1/completions continues plain text"));
    }
    let defaults = GenerationConfig::from_dir(model.dir())?;
    let longest = model.hf.max_position_embeddings;
    let context = match args.running.context {
        None => longest.min(DEFAULT_CONTEXT),
        asked => settings::context(asked, longest, 0, None)?,
    };
    let room = room(&args.sharing, context, precision);
    let info = ModelInfo {
        names: names(&args.name, &args.model, &place.dir),
        end_tokens: settings::end_tokens(&defaults, &model.hf, &tokenizer),
        template,
        defaults,
    };
    let cache_state = args.sharing.cache_state.as_deref().map(|directory| {
        let fingerprint = cache_fingerprint(&model, &configs, room.cache)?;
        let state = CacheState { directory: directory.to_owned(), fingerprint };
        // A directory that cannot be made is an error now, not when all that is cached would be lost.
        state.create_directory()?;
        Ok::<_, anyhow::Error>(state)
    });
    let config = EngineConfig {
        queue: args.sharing.queue,
        sequences: args.sharing.sequences,
        prefill_chunk: args.sharing.prefill_chunk,
        gap: Some(args.sharing.max_gap),
        reuse: Reuse::Prompts,
        rows_apart: EngineConfig::default().rows_apart,
        cache_state: cache_state.transpose()?,
    };
    let summary = summary(&info.defaults, &config, room);
    let device = args.device;
    let engine = EngineThread::start(tokenizer, config, move || {
        let session = Session::open(&model, configs, room, device)?;
        note(format_args!("{summary}; {}", session.device()));
        Ok::<_, anyhow::Error>(session)
    })?;
    match engine.restored() {
        None => {}
        Some(Ok(CacheReport { pages: 0, .. })) => note(format_args!("the cache begins empty")),
        Some(Ok(CacheReport { pages, .. })) => {
            note(format_args!("restored {} of the cache", count(*pages as u64, "page")));
        }
        Some(Err(error)) => note(format_args!("warning: the cache begins empty: {error}")),
    }
    Ok(Loaded { engine, model: info })
}

fn room(sharing: &SharingArgs, context: usize, precision: PrecisionArgs) -> Room {
    let tokens = sharing.cache_tokens.unwrap_or(context.saturating_mul(DEFAULT_CONTEXTS));
    let cache = precision.or_fast().cache;
    Room { sequences: tokens.div_ceil(context).max(1), cache, ..Room::one(context) }
}

/// What clients call the model.
fn names(asked: &[String], args: &ModelArgs, dir: &Path) -> Vec<String> {
    if !asked.is_empty() {
        return asked.to_vec();
    }
    let own = args.model.is_some().then(|| dir.file_stem().and_then(|name| name.to_str())).flatten();
    vec![own.unwrap_or(EMBEDDED_NAME).to_owned()]
}

/// What requests get that do not ask for something else, and what there is room for.
fn summary(defaults: &GenerationConfig, config: &EngineConfig, room: Room) -> String {
    let GenerationConfig { do_sample, temperature, top_p, top_k, .. } = defaults;
    let sampling = if *do_sample {
        let top_k = if *top_k > 0 { format!(", top-k {top_k}") } else { String::new() };
        format!("temperature {temperature}, top-p {top_p}{top_k}")
    } else {
        "greedy".to_owned()
    };
    let Room { context, cache, .. } = room;
    let cached = count(room.positions() as u64, "token");
    format!(
        "without other words: {sampling}; context {context}; {} at once; room for {cached}, cached in {cache}",
        count(config.sequences as u64, "answer")
    )
}
