//! GET /v1/experts: which experts the model's tokens go to, as it runs.

use std::{sync::Arc, time::Duration};

use axum::{extract::State, response::Response};
use dsv3_engine::ChosenExperts;
use tokio::{task, time};

use crate::{ApiError, app::App, stream};

/// How often is looked.
const INTERVAL: Duration = Duration::from_millis(100);

/// Server-sent events, ten a second at most: `{"first_layer": 3, "counts": [[0, 2, ...], ...]}`, for each layer with experts how
/// often each was chosen since the last event, by whatever request. Where several listen each is told a part.
pub(crate) async fn experts(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    if !app.config.experts {
        return Err(ApiError::no_route("/v1/experts"));
    }
    let engine = app.ready()?.engine.clone();
    let ask = move || {
        let engine = engine.clone();
        // Waits for the step that runs.
        async move { task::spawn_blocking(move || engine.take_chosen_experts()).await }
    };
    Ok(stream::respond(&app, |writer| async move {
        loop {
            match ask().await {
                Ok(Ok(Some(chosen))) if is_any(&chosen) => writer.send(&chosen).await?,
                Ok(Ok(Some(_))) => {}
                Ok(Ok(None)) => return writer.done().await,
                _ => return Ok(()),
            }
            tokio::select! {
                () = time::sleep(INTERVAL) => {}
                () = writer.closed() => return Ok(()),
            }
        }
    }))
}

fn is_any(chosen: &ChosenExperts) -> bool {
    chosen.counts.iter().flatten().any(|&count| count > 0)
}
