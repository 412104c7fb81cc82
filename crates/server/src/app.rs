//! What all requests share.

use std::{
    net::IpAddr,
    sync::{Arc, OnceLock},
    time::{SystemTime, UNIX_EPOCH},
};

use dsv3_engine::{ChatTemplate, EngineHandle, GenerationConfig, Health};
use dsv3_runtime::TokenId;
use tokio::{sync::Semaphore, task};

use crate::{ApiError, ServerConfig, auth::Keys, hosts::Hosts, metrics::Metrics};

/// What is known of a model beside what its engine knows.
#[derive(Debug)]
pub struct ModelInfo {
    /// Its names; clients are told the first.
    pub names: Vec<String>,
    /// The chat template; none for a model that only continues text.
    pub template: Option<ChatTemplate>,
    /// How tokens are chosen where a request does not say.
    pub defaults: GenerationConfig,
    /// The ids that end a text.
    pub end_tokens: Vec<TokenId>,
}

/// A model that can be asked.
pub(crate) struct Served {
    pub(crate) engine: EngineHandle,
    pub(crate) info: ModelInfo,
    /// Seconds since 1970.
    pub(crate) since: u64,
}

impl Served {
    pub(crate) fn new(engine: EngineHandle, info: ModelInfo) -> Self {
        Self { engine, info, since: now() }
    }

    /// What clients are told.
    pub(crate) fn name(&self) -> &str {
        self.info.names.first().map_or("dsv3", String::as_str)
    }

    /// Whether a request for a model means this one; one that names none does.
    ///
    /// # Errors
    /// 404.
    pub(crate) fn check_name(&self, asked: Option<&str>) -> Result<(), ApiError> {
        match asked {
            Some(asked) if asked != self.name() && !self.info.names.iter().any(|name| name == asked) => {
                Err(ApiError::no_model(asked, self.name()))
            }
            _ => Ok(()),
        }
    }
}

/// What all requests share.
pub(crate) struct App {
    pub(crate) config: ServerConfig,
    pub(crate) keys: Keys,
    pub(crate) hosts: Hosts,
    pub(crate) metrics: Metrics,
    /// Empty while the model is loaded.
    pub(crate) model: Arc<OnceLock<Served>>,
    /// Templates and tokenizers run on as many threads at once: the model needs the cores.
    workers: Arc<Semaphore>,
    /// And as many compile the forms of answers, so that one which takes long holds up no request without while the
    /// queue has a place.
    pub(crate) compilers: Arc<Semaphore>,
}

/// Requests that are made ready at once. One alone could be held up by another's long prompt.
const WORKERS: usize = 2;
/// Forms that are compiled at once. What waits for it has a place in the queue, so that they are not many.
pub(crate) const COMPILERS: usize = 2;
/// Seconds after which to ask again while the model is loaded.
const LOADING_RETRY: u64 = 5;

impl App {
    /// For a server that listens at `address`.
    pub(crate) fn new(config: ServerConfig, address: IpAddr) -> Self {
        let model = Arc::new(OnceLock::new());
        let keys = Keys::new(&config.api_keys);
        let [workers, compilers] = [WORKERS, COMPILERS].map(|count| Arc::new(Semaphore::new(count)));
        let hosts = Hosts::new(&config, address);
        let metrics = Metrics::new(Arc::clone(&model));
        Self { config, keys, hosts, metrics, model, workers, compilers }
    }

    /// The model.
    ///
    /// # Errors
    /// 503 while it is loaded.
    pub(crate) fn served(&self) -> Result<&Served, ApiError> {
        let loading = || ApiError::unavailable("the model is being loaded", Some(LOADING_RETRY));
        self.model.get().ok_or_else(loading)
    }

    /// The model, if it takes requests.
    ///
    /// # Errors
    /// 503, with the reason.
    pub(crate) fn ready(&self) -> Result<&Served, ApiError> {
        let served = self.served()?;
        match served.engine.health() {
            Health::Ready => Ok(served),
            Health::ShuttingDown => Err(ApiError::unavailable("the server is shutting down", None)),
            Health::Failed(message) => {
                Err(ApiError::unavailable(format!("the engine has failed: {message}"), None))
            }
        }
    }

    /// Runs what takes long enough to hold up others, with the model.
    ///
    /// # Errors
    /// 503 while the model is loaded; 500 where it panics.
    pub(crate) async fn work<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self, &Served) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        self.one_of(&self.workers, work).await
    }

    /// As [`work`](Self::work), for what compiles the form of an answer.
    ///
    /// # Errors
    /// As [`work`](Self::work).
    pub(crate) async fn compile<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self, &Served) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        self.one_of(&self.compilers, work).await
    }

    async fn one_of<T: Send + 'static>(
        self: &Arc<Self>,
        places: &Arc<Semaphore>,
        work: impl FnOnce(&Self, &Served) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let app = Arc::clone(self);
        // With the work, not with who waits for it: a client that goes away does not make room for more.
        let permit = Arc::clone(places).acquire_owned().await;
        let work = task::spawn_blocking(move || {
            let result = app.ready().and_then(|served| work(&app, served));
            drop(permit);
            result
        });
        work.await.unwrap_or_else(|_| Err(ApiError::server("the request's preparation panicked")))
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
