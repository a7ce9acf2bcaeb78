//! `http_requests_total{route,method,status}` and `http_request_duration_seconds{route,method}`.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::Method;
use axum::response::Response;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};
use tower::{Layer, Service};

/// Label of requests that match no route: their paths are anybody's.
const UNMATCHED: &str = "unmatched";

/// Counts and times requests. A layer for `Router::layer`, which is where routes are known.
#[derive(Clone, Debug)]
pub struct HttpMetrics {
    requests: IntCounterVec,
    seconds: HistogramVec,
}

/// Registers the two metrics and returns the layer that feeds them.
///
/// # Errors
/// They are registered already.
pub fn http_metrics(registry: &Registry) -> prometheus::Result<HttpMetrics> {
    let requests = IntCounterVec::new(
        Opts::new("http_requests_total", "Requests answered"),
        &["route", "method", "status"],
    )?;
    let seconds = HistogramVec::new(
        HistogramOpts::new(
            "http_request_duration_seconds",
            "From a request's head to its answer's",
        ),
        &["route", "method"],
    )?;
    registry.register(Box::new(requests.clone()))?;
    registry.register(Box::new(seconds.clone()))?;
    Ok(HttpMetrics { requests, seconds })
}

impl<S> Layer<S> for HttpMetrics {
    type Service = HttpMetricsService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        HttpMetricsService {
            inner,
            metrics: self.clone(),
        }
    }
}

/// What [`HttpMetrics`] makes of a service.
#[derive(Clone, Debug)]
pub struct HttpMetricsService<S> {
    inner: S,
    metrics: HttpMetrics,
}

impl<S> Service<Request> for HttpMetricsService<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let begun = Instant::now();
        let matched = request.extensions().get::<MatchedPath>().cloned();
        let method = method(request.method());
        let metrics = self.metrics.clone();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = answer.await?;
            let route = matched.as_ref().map_or(UNMATCHED, MatchedPath::as_str);
            let seconds = begun.elapsed().as_secs_f64();
            metrics
                .seconds
                .with_label_values(&[route, method])
                .observe(seconds);
            let status = response.status();
            metrics
                .requests
                .with_label_values(&[route, method, status.as_str()])
                .inc();
            Ok(response)
        })
    }
}

/// Clients may invent methods; a label may not have endless values.
fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::routing::get;
    use prometheus::TextEncoder;
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test]
    async fn requests_are_counted_by_route_not_by_path() {
        let registry = Registry::new();
        let app = Router::new()
            .route("/orders/{id}", get("an order"))
            .layer(http_metrics(&registry).unwrap());
        for (method, path) in [
            ("GET", "/orders/1"),
            ("GET", "/orders/2"),
            ("GET", "/nowhere"),
            ("BREW", "/orders/1"),
        ] {
            let request = Request::builder()
                .method(method)
                .uri(path)
                .body(Body::empty())
                .unwrap();
            app.clone().oneshot(request).await.unwrap();
        }
        let text = TextEncoder::new()
            .encode_to_string(&registry.gather())
            .unwrap();
        for line in [
            r#"http_requests_total{method="GET",route="/orders/{id}",status="200"} 2"#,
            r#"http_requests_total{method="GET",route="unmatched",status="404"} 1"#,
            r#"http_requests_total{method="other",route="/orders/{id}",status="405"} 1"#,
            r#"http_request_duration_seconds_count{method="GET",route="/orders/{id}"} 2"#,
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn a_second_registration_is_an_error_not_a_panic() {
        let registry = Registry::new();
        http_metrics(&registry).unwrap();
        assert!(http_metrics(&registry).is_err());
    }
}
