//! Who calls, and whether the form is one of ours. Every page has one of these two as an argument, and
//! there is no page without: only the login and the style sheet are for everybody.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::header::{CONTENT_TYPE, COOKIE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Redirect, Response};

use super::form::{Fields, encode};
use super::frame::Trouble;
use super::session::Visitor;
use super::{Desk, origin};

/// The field that every form has.
pub(super) const CSRF: &str = "csrf";

impl FromRequestParts<Arc<Desk>> for Visitor {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, desk: &Arc<Desk>) -> Result<Self, Response> {
        let visitor = visitor(desk, &parts.headers).ok_or_else(|| to_login(parts));
        std::future::ready(visitor).await
    }
}

/// A form that an operator has sent from a page of ours.
pub(super) struct Signed {
    pub(super) visitor: Visitor,
    pub(super) fields: Fields,
}

impl FromRequest<Arc<Desk>> for Signed {
    type Rejection = Response;

    async fn from_request(request: Request, desk: &Arc<Desk>) -> Result<Self, Response> {
        let (visitor, fields) = own_form(request, desk).await?;
        if !visitor.may_act() {
            let text = "You are logged in as a viewer: to look, not to act.";
            let hint = "Find somebody whose token has the role operator.";
            return Err(Trouble::new(StatusCode::FORBIDDEN, text, hint).page(desk, Some(&visitor)));
        }
        Ok(Self { visitor, fields })
    }
}

/// A form that anybody who is logged in has sent from a page of ours.
pub(super) async fn own_form(
    request: Request,
    desk: &Arc<Desk>,
) -> Result<(Visitor, Fields), Response> {
    let (parts, body) = request.into_parts();
    let Some(visitor) = visitor(desk, &parts.headers) else {
        return Err(to_login(&parts));
    };
    let refused = |trouble: Trouble| trouble.page(desk, Some(&visitor));
    let request = Request::from_parts(parts, body);
    let fields = read(request).await.map_err(refused)?;
    if !fields.has_secret(CSRF, &visitor.csrf) {
        return Err(refused(Trouble::foreign_form()));
    }
    Ok((visitor, fields))
}

/// A form from a page of this host and port.
pub(super) async fn read(request: Request) -> Result<Fields, Trouble> {
    if !origin::is_own(request.headers()) {
        return Err(Trouble::foreign_form());
    }
    let kind = request
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    let kind = kind
        .and_then(|kind| kind.split(';').next())
        .unwrap_or_default();
    if !kind
        .trim()
        .eq_ignore_ascii_case("application/x-www-form-urlencoded")
    {
        let text = "The form is not URL-encoded.";
        return Err(Trouble::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            text,
            "Use the page's own.",
        ));
    }
    let body = Bytes::from_request(request, &()).await.map_err(|err| {
        let hint = "The longest form has 512 KiB; longer payloads can be edited in the database.";
        Trouble::new(err.status(), "The form is too long, or was cut off.", hint)
    })?;
    Fields::parse(&body).map_err(|err| Trouble::bad_form(&err))
}

fn visitor(desk: &Desk, headers: &HeaderMap) -> Option<Visitor> {
    desk.sessions
        .find(cookie(headers, &desk.cookie)?, Instant::now())
}

/// The value of a cookie.
pub(super) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|header| header.to_str().ok())
        .flat_map(|header| header.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(own, _)| *own == name)
        .map(|(_, value)| value)
}

/// To the login, and from there to where the person wanted to go; a form that was sent is lost.
fn to_login(parts: &Parts) -> Response {
    let wanted = match (parts.method.as_str(), parts.uri.path_and_query()) {
        ("GET", Some(wanted)) => encode(wanted.as_str()),
        _ => String::new(),
    };
    Redirect::to(&format!("/ops/login?next={wanted}")).into_response()
}
