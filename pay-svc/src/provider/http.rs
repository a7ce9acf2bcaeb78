//! A provider behind a URL.

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Request, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use svc_kit::trace::TRACEPARENT;
use time::OffsetDateTime;

use super::answer::{self, Answer};
use super::{Charge, ChargeError, Provider, Receipt};

/// An answer is a few hundred bytes; what is longer is not read.
const ANSWER_MAX: usize = 64 * 1024;
/// Idle connections are let go before a provider, or a balancer before it, does so.
const IDLE_MAX: Duration = Duration::from_secs(20);
const IDEMPOTENCY_KEY: &str = "idempotency-key";
const AGENT: HeaderValue = HeaderValue::from_static(concat!("pay-svc/", env!("CARGO_PKG_VERSION")));
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Where the provider is and how to show that it is us.
#[derive(Debug, Clone)]
pub struct HttpSettings {
    /// Charges are posted here; `http` or `https`.
    pub url: Uri,
    /// Sent as `Authorization: Bearer`.
    pub token: Option<SecretString>,
    /// Whom to trust with `https`.
    pub tls: ClientConfig,
    /// A connection that takes longer to make has failed.
    pub connect_timeout: Duration,
    /// Idle connections that are kept.
    pub connections: usize,
}

/// The client. Time-outs are the caller's: a call that is dropped closes its connection.
#[derive(Debug)]
pub struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    url: Uri,
    authorization: Option<HeaderValue>,
}

#[derive(Serialize)]
struct ChargeBody<'a> {
    order_id: String,
    amount_minor: i64,
    currency: &'a str,
}

impl Http {
    /// A client that has no connection yet.
    #[must_use]
    pub fn new(settings: &HttpSettings) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(settings.connect_timeout));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(settings.tls.clone())
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_MAX)
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(settings.connections)
            .http1_max_buf_size(ANSWER_MAX)
            .build(connector);
        Self {
            client,
            url: settings.url.clone(),
            authorization: settings.token.as_ref().and_then(bearer),
        }
    }

    fn request(&self, charge: &Charge) -> Request<Full<Bytes>> {
        let order_id = charge.order_id.to_string();
        let key = HeaderValue::from_str(&order_id).expect("a UUID is hexadecimal and hyphens");
        let body = ChargeBody {
            order_id,
            amount_minor: charge.amount_minor,
            currency: &charge.currency,
        };
        let body = serde_json::to_vec(&body).expect("text and a number are JSON");
        let mut request = Request::post(self.url.clone())
            .header(IDEMPOTENCY_KEY, key)
            .header(CONTENT_TYPE, JSON)
            .header(ACCEPT, JSON)
            .header(USER_AGENT, AGENT)
            .body(Full::from(body))
            .expect("every part was checked before");
        if let Some(authorization) = &self.authorization {
            request
                .headers_mut()
                .insert(AUTHORIZATION, authorization.clone());
        }
        if let Some(place) = charge.traceparent {
            let place = HeaderValue::from_str(&place.to_string());
            let place = place.expect("a place is hexadecimal and hyphens");
            request.headers_mut().insert(TRACEPARENT, place);
        }
        request
    }

    async fn call(&self, charge: &Charge) -> Result<Receipt, ChargeError> {
        let answer = self.client.request(self.request(charge)).await;
        let (head, body) = answer.map_err(|err| unreachable(&err))?.into_parts();
        let body = match Limited::new(body, ANSWER_MAX).collect().await {
            Ok(body) => Some(body.to_bytes()),
            Err(err) if err.is::<LengthLimitError>() => None,
            Err(err) => return Err(unreachable(err.as_ref())),
        };
        let retry_after = head.headers.get(RETRY_AFTER);
        let answer = Answer {
            status: head.status,
            retry_after: retry_after.and_then(|value| value.to_str().ok()),
            body: body.as_deref(),
        };
        answer::read(answer, OffsetDateTime::now_utc())
    }
}

impl Provider for Http {
    fn charge<'a>(&'a self, charge: &'a Charge) -> BoxFuture<'a, Result<Receipt, ChargeError>> {
        self.call(charge).boxed()
    }
}

/// Can a header carry this token?
pub(crate) fn is_header(token: &SecretString) -> bool {
    bearer(token).is_some()
}

fn bearer(token: &SecretString) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose_secret())).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Whatever keeps an answer from coming is the provider's or the network's, not the message's.
fn unreachable(err: &(dyn std::error::Error + 'static)) -> ChargeError {
    let causes = std::iter::successors(Some(err), |err| err.source());
    let text: Vec<String> = causes.map(ToString::to_string).collect();
    ChargeError::Unavailable {
        text: text.join(": "),
        retry_after: None,
    }
}
