//! Reading requests: whatever is wrong with one is reported as a problem.

use axum::body::Bytes;
use axum::extract::Query;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::http::{HeaderMap, StatusCode, Uri};
use serde::de::DeserializeOwned;
use svc_kit::http::{Problem, malformed_json, media_type, not_json};

use crate::filter::{Filter, PageRequest};

/// The longest body, in bytes.
pub const BODY_MAX: usize = 64 * 1024;

/// A body as it came.
pub(super) type Body = Result<Bytes, BytesRejection>;

/// A part of the path, percent-decoded.
pub(super) type Part = Result<axum::extract::Path<String>, PathRejection>;

/// The members of a page; all others are the filter's.
const PAGE: [&str; 3] = ["order", "limit", "after"];

/// Filter and page of a query, each of which refuses what it does not know.
pub(super) fn list(uri: &Uri) -> Result<(Filter, PageRequest), Problem> {
    Ok((
        query(uri, |name| !PAGE.contains(&name))?,
        query(uri, |name| PAGE.contains(&name))?,
    ))
}

/// The members of a query whose names are wanted.
pub(super) fn query<T: DeserializeOwned>(
    uri: &Uri,
    is_wanted: impl Fn(&str) -> bool,
) -> Result<T, Problem> {
    let name = |pair: &str| pair.split('=').next().unwrap_or_default().to_owned();
    let pairs = uri.query().unwrap_or_default().split('&');
    let wanted: Vec<&str> = pairs
        .filter(|pair| !pair.is_empty() && is_wanted(&name(pair)))
        .collect();
    let invalid = |detail: String| {
        let title = "The query is not valid";
        Problem::new(StatusCode::BAD_REQUEST, "invalid_query", title).detail(detail)
    };
    let uri: Uri = format!("/?{}", wanted.join("&"))
        .parse()
        .map_err(|_| invalid("it is not a query".to_owned()))?;
    Query::try_from_uri(&uri)
        .map(|Query(found)| found)
        .map_err(|err| invalid(err.body_text()))
}

/// A JSON body; one that is not there is as an empty object.
pub(super) fn json<T: DeserializeOwned>(headers: &HeaderMap, body: Body) -> Result<T, Problem> {
    let body = body.map_err(|err| unreadable(&err))?;
    if body.is_empty() {
        return parse(b"{}");
    }
    if media_type(headers) != "application/json" {
        return Err(not_json());
    }
    parse(&body)
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|err| match err.is_data() {
        true => {
            let (status, title) = (StatusCode::UNPROCESSABLE_ENTITY, "The request is not valid");
            Problem::new(status, "invalid_request", title).detail(err.to_string())
        }
        false => malformed_json(err.to_string()),
    })
}

fn unreadable(err: &BytesRejection) -> Problem {
    match err.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            "The body is too long",
        ),
        _ => Problem::new(
            StatusCode::BAD_REQUEST,
            "unreadable_body",
            "The body could not be read",
        ),
    }
}

/// The row's key in the path.
pub(super) fn key(part: Part) -> Result<String, Problem> {
    part.map(|axum::extract::Path(key)| key).map_err(|_| {
        let title = "The path is not UTF-8 once decoded";
        Problem::new(StatusCode::BAD_REQUEST, "invalid_path", title)
    })
}
