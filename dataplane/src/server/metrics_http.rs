//! Prometheus metrics over HTTP on the control thread: `GET /metrics`, and `GET /healthz` for probes.
//!
//! Called by `server::serve`.

use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use super::Cell;

/// Serves until it is dropped.
pub async fn serve(cell: Arc<Cell>, listener: TcpListener) {
    let metrics = {
        let cell = cell.clone();
        get(move || {
            let cell = cell.clone();
            async move {
                cell.refresh_metrics().await;
                ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], cell.metrics.render())
            }
        })
    };
    let health = get(move || {
        let cell = cell.clone();
        async move {
            if cell.is_draining() {
                (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response()
            } else {
                "serving\n".into_response()
            }
        }
    });
    let router = Router::new().route("/metrics", metrics).route("/healthz", health);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "the metrics listener failed");
    }
}
