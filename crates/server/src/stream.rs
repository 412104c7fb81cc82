//! Answers as server-sent events.

use std::{convert::Infallible, future::Future, sync::Arc, time::Duration};

use axum::response::{
    IntoResponse, Response, Sse,
    sse::{Event, KeepAlive},
};
use futures_util::stream;
use serde::Serialize;
use tokio::{sync::mpsc, time};
use tracing::Instrument;

use crate::{ApiError, app::App};

/// Events between an answer and its connection.
const EVENTS: usize = 16;
/// How often a comment is sent where there is nothing else, so that nobody on the way takes the connection for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The client's end of a stream.
pub(crate) struct Writer {
    sender: mpsc::Sender<Event>,
    patience: Duration,
}

/// Nobody reads the stream any more, or not in time.
#[derive(Debug)]
pub(crate) struct Gone;

impl Writer {
    /// Sends an event of JSON.
    ///
    /// # Errors
    /// A client that is gone, or does not read.
    pub(crate) async fn send(&self, value: &impl Serialize) -> Result<(), Gone> {
        match Event::default().json_data(value) {
            Ok(event) => self.put(event).await,
            Err(error) => {
                tracing::error!("an event cannot be written: {error}");
                Err(Gone)
            }
        }
    }

    /// Ends a stream that is complete.
    pub(crate) async fn done(&self) -> Result<(), Gone> {
        self.put(Event::default().data("[DONE]")).await
    }

    /// Ends a stream that is not.
    pub(crate) async fn fail(&self, error: ApiError) {
        tracing::warn!(status = error.status().as_u16(), "a stream failed: {}", error.message());
        // Who does not read the answer does not read this either.
        let _ = self.send(&error.into_body()).await;
    }

    /// Until the client is gone.
    pub(crate) async fn closed(&self) {
        self.sender.closed().await;
    }

    async fn put(&self, event: Event) -> Result<(), Gone> {
        match time::timeout(self.patience, self.sender.send(event)).await {
            Ok(sent) => sent.map_err(|_| Gone),
            Err(_) => {
                tracing::warn!("a client does not read its stream, which is cut off");
                Err(Gone)
            }
        }
    }
}

/// A response whose events `produce` writes, on a task of its own: it notices a client that is gone, or does not read, by itself.
pub(crate) fn respond<F>(app: &Arc<App>, produce: impl FnOnce(Writer) -> F) -> Response
where
    F: Future<Output = Result<(), Gone>> + Send + 'static,
{
    let (sender, mut receiver) = mpsc::channel(EVENTS);
    let writer = Writer { sender, patience: app.config.limits.write_time };
    let produce = produce(writer);
    let app = Arc::clone(app);
    let task = async move {
        app.metrics.stream_opened();
        let end = produce.await;
        app.metrics.stream_closed(end.is_err());
    };
    tokio::spawn(task.in_current_span());
    let events = stream::poll_fn(move |context| {
        receiver.poll_recv(context).map(|event| event.map(Ok::<_, Infallible>))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}
