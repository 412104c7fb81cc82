//! The socket, and the server's life: it listens before the model is there, and ends when its streams have.

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener as StdListener, ToSocketAddrs},
    sync::Arc,
    thread,
    time::Duration,
};

use axum::Router;
use dsv3_engine::{CacheReport, EngineThread, Error, Health};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    signal::unix::{Signal, SignalKind, signal},
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    task, time,
};
use tokio_io_timeout::TimeoutStream;

use crate::{
    ServerConfig,
    app::{App, ModelInfo, Served},
    log, routes,
};

/// Threads for connections. Everything that takes time runs elsewhere, and the cores are the model's.
const THREADS: usize = 2;
/// How often it is looked whether the engine still works.
const WATCH: Duration = Duration::from_millis(500);
/// How long nothing is accepted where the system has no more descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a server was given to serve.
pub struct Loaded {
    /// The engine.
    pub engine: EngineThread,
    /// What the engine does not know of its model.
    pub model: ModelInfo,
}

/// Why a server ended, if not because it was told to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError<E> {
    /// Its socket.
    #[error("{address}: {source}")]
    Socket {
        /// Where it was to listen.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The model could not be loaded.
    #[error(transparent)]
    Load(E),
    /// The engine failed.
    #[error("the engine has failed: {0}")]
    Engine(String),
}

/// How a server ended.
#[derive(Debug, Default)]
pub struct Ended {
    /// What was saved of the cache, or why it was not.
    pub saved: Option<Result<CacheReport, Error>>,
}

/// A server that listens, and answers when it has a model.
pub struct Server {
    listener: StdListener,
    address: SocketAddr,
    app: Arc<App>,
}

impl Server {
    /// Opens the socket.
    ///
    /// # Errors
    /// [`ServeError::Socket`].
    pub fn bind<E>(config: ServerConfig) -> Result<Self, ServeError<E>> {
        let address = format!("{}:{}", config.host, config.port);
        let socket = |source| ServeError::Socket { address: address.clone(), source };
        let addresses: Vec<SocketAddr> =
            (config.host.as_str(), config.port).to_socket_addrs().map_err(socket)?.collect();
        let listener = StdListener::bind(&addresses[..]).map_err(socket)?;
        listener.set_nonblocking(true).map_err(socket)?;
        let address = listener.local_addr().map_err(socket)?;
        Ok(Self { listener, address, app: Arc::new(App::new(config, address.ip())) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Loads the model, and serves until SIGINT or SIGTERM. Then nothing more is accepted, and what has begun is finished,
    /// unless a second signal comes. Tells `ready` of the model once it can be asked.
    ///
    /// # Errors
    /// What `load` says; an engine that fails later.
    ///
    /// # Panics
    /// If the system gives no threads and no signals.
    pub fn run<E: Send + 'static>(
        self,
        load: impl FnOnce() -> Result<Loaded, E> + Send + 'static,
        ready: impl FnOnce(&ModelInfo),
    ) -> Result<Ended, ServeError<E>> {
        log::start(self.app.config.log);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("dsv3-http")
            .enable_all()
            .build()
            .expect("threads for a server");
        let result = runtime.block_on(self.live(load, ready));
        // Work that nobody waits for any more does not hold up the end.
        runtime.shutdown_background();
        result
    }

    async fn live<E: Send + 'static>(
        self,
        load: impl FnOnce() -> Result<Loaded, E> + Send + 'static,
        ready: impl FnOnce(&ModelInfo),
    ) -> Result<Ended, ServeError<E>> {
        let mut signals = Signals::new();
        let socket = |source| ServeError::Socket { address: self.address.to_string(), source };
        let listener = TcpListener::from_std(self.listener).map_err(socket)?;
        let connections = Connections::new(&self.app);
        let mut loading = spawn_load(load);
        let (mut engine, mut ready) = (None, Some(ready));
        let mut watch = time::interval(WATCH);
        loop {
            tokio::select! {
                connection = connections.accept(&listener) => connections.serve(connection),
                loaded = &mut loading, if engine.is_none() => {
                    let Loaded { engine: thread, model } = match loaded {
                        Ok(Ok(loaded)) => loaded,
                        Ok(Err(error)) => return Err(ServeError::Load(error)),
                        Err(_) => return Err(ServeError::Engine("loading panicked".to_owned())),
                    };
                    let served = Served::new(thread.handle(), model);
                    tracing::info!(model = served.name(), "ready");
                    let served = self.app.model.get_or_init(|| served);
                    if let Some(ready) = ready.take() {
                        ready(&served.info);
                    }
                    engine = Some(thread);
                }
                _ = watch.tick() => {
                    if let Some(Health::Failed(message)) = self.app.model.get().map(|served| served.engine.health()) {
                        return Err(ServeError::Engine(message));
                    }
                }
                () = signals.next() => break,
            }
        }
        drop(listener);
        tracing::info!(
            streams = self.app.metrics.open_streams(),
            "shutting down: a second signal does not wait"
        );
        let is_drained = tokio::select! {
            () = connections.drain() => true,
            () = time::sleep(self.app.config.limits.drain_time) => false,
            () = signals.next() => false,
        };
        let Some(engine) = engine else { return Ok(Ended::default()) };
        let saving = task::spawn_blocking(move || engine.shutdown(is_drained));
        tokio::select! {
            saved = saving => Ok(Ended { saved: saved.unwrap_or_default() }),
            () = signals.next() => Ok(Ended::default()),
        }
    }
}

/// Loads on a thread that the runtime does not wait for.
fn spawn_load<E: Send + 'static>(
    load: impl FnOnce() -> Result<Loaded, E> + Send + 'static,
) -> oneshot::Receiver<Result<Loaded, E>> {
    let (sender, receiver) = oneshot::channel();
    let run = move || {
        let _ = sender.send(load());
    };
    thread::Builder::new().name("dsv3-load".to_owned()).spawn(run).expect("a thread to load on");
    receiver
}

/// SIGINT and SIGTERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Self {
        let listen = |kind| signal(kind).expect("the system gives signals");
        Self { interrupt: listen(SignalKind::interrupt()), terminate: listen(SignalKind::terminate()) }
    }

    /// Until the next one.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// A connection, and its place among as many as there may be.
struct Connection {
    stream: TcpStream,
    place: OwnedSemaphorePermit,
}

/// All connections.
struct Connections {
    app: Arc<App>,
    router: Router,
    graceful: GracefulShutdown,
    places: Arc<Semaphore>,
}

impl Connections {
    fn new(app: &Arc<App>) -> Self {
        Self {
            router: routes::router(app),
            graceful: GracefulShutdown::new(),
            places: Arc::new(Semaphore::new(app.config.limits.connections)),
            app: Arc::clone(app),
        }
    }

    /// The next connection that there is a place for.
    async fn accept(&self, listener: &TcpListener) -> Connection {
        loop {
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
                unreachable!("the semaphore is never closed")
            };
            match listener.accept().await {
                Ok((stream, _)) => return Connection { stream, place },
                Err(error) => {
                    tracing::warn!("no connection can be accepted: {error}");
                    time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Serves a connection until it ends. A client that does not send its request or does not read its response loses it.
    fn serve(&self, Connection { stream, place }: Connection) {
        let limits = &self.app.config.limits;
        let _ = stream.set_nodelay(true);
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(limits.write_time));
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(limits.read_time);
        let service = TowerToHyperService::new(self.router.clone());
        let connection = http.serve_connection(TokioIo::new(Box::pin(stream)), service);
        let connection = self.graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("a connection ended: {error}");
            }
            drop(place);
        });
    }

    /// Until all connections have ended; those that are idle do so at once.
    async fn drain(self) {
        self.graceful.shutdown().await;
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}
