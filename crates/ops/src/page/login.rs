//! Login by token, and logout.

use std::sync::Arc;
use std::time::Instant;

use askama::Template;
use axum::extract::{Request, State};
use axum::http::header::{HeaderName, RETRY_AFTER, SET_COOKIE};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse as _, Redirect, Response};
use svc_kit::http::peer;
use svc_kit::operators::Refused;

use super::Desk;
use super::form::Fields;
use super::frame::{Frame, Trouble, page as html};
use super::guard::{self, CSRF, cookie};
use super::session::{LIFE, secret};

/// The login's own secret: there is no session yet that could hold one.
const LOGIN_COOKIE: &str = "ops-login";
const NEXT_MAX: usize = 2_000;
/// Set by whoever puts TLS in front.
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

#[derive(Template)]
#[template(path = "login.html")]
struct LoginPage {
    frame: Frame,
    secret: String,
    next: String,
    problem: Option<String>,
}

/// The form.
pub(super) async fn page(State(desk): State<Arc<Desk>>, uri: Uri, headers: HeaderMap) -> Response {
    let query = Fields::parse(uri.query().unwrap_or_default().as_bytes()).unwrap_or_default();
    let next = safe(query.raw("next")).to_owned();
    std::future::ready(form(&desk, &headers, next, None)).await
}

/// Takes the token.
pub(super) async fn login(State(desk): State<Arc<Desk>>, request: Request) -> Response {
    let from = peer(request.extensions());
    let headers = request.headers().clone();
    let fields = match guard::read(request).await {
        Ok(fields) => fields,
        Err(trouble) => return trouble.page(&desk, None),
    };
    let ours = cookie(&headers, LOGIN_COOKIE).is_some_and(|own| fields.has_secret(CSRF, own));
    if !ours {
        return Trouble::foreign_form().page(&desk, None);
    }
    let token = fields.get("token").unwrap_or_default();
    let person = match desk.console.tokens().authenticate(token, from) {
        Ok(person) => person,
        Err(refused) => {
            let next = safe(fields.raw("next")).to_owned();
            return refusal(&desk, &headers, next, refused);
        }
    };
    tracing::info!(person = %person.name, %from, "logged in");
    let value = desk.sessions.open(person, Instant::now());
    let mut response = Redirect::to(safe(fields.raw("next"))).into_response();
    let session = set(&headers, &desk.cookie, &value, LIFE.as_secs());
    response.headers_mut().append(SET_COOKIE, session);
    response
        .headers_mut()
        .append(SET_COOKIE, set(&headers, LOGIN_COOKIE, "", 0));
    response
}

/// The form again, with the reason.
fn refusal(desk: &Desk, headers: &HeaderMap, next: String, refused: Refused) -> Response {
    let (status, text, wait) = match refused {
        Refused::Wrong => {
            let text = "This token is not known. It is the third part of an entry of OPS_TOKENS.";
            (StatusCode::FORBIDDEN, text.to_owned(), None)
        }
        Refused::TooMany(wait) => {
            let seconds = wait.as_secs() + 1;
            let text = format!(
                "This token is not known, and there were too many wrong ones. The right one works \
                 at once; another wrong one is answered in {seconds} seconds."
            );
            (StatusCode::TOO_MANY_REQUESTS, text, Some(seconds))
        }
    };
    let mut response = form(desk, headers, next, Some(text));
    *response.status_mut() = status;
    if let Some(seconds) = wait {
        let headers = response.headers_mut();
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Ends the session.
pub(super) async fn logout(State(desk): State<Arc<Desk>>, request: Request) -> Response {
    let headers = request.headers().clone();
    let (visitor, _) = match guard::own_form(request, &desk).await {
        Ok(own) => own,
        Err(response) => return response,
    };
    desk.sessions.close(&visitor);
    tracing::info!(person = %visitor.name, "logged out");
    let mut response = Redirect::to("/ops/login").into_response();
    let ended = set(&headers, &desk.cookie, "", 0);
    response.headers_mut().append(SET_COOKIE, ended);
    response
}

fn form(desk: &Desk, headers: &HeaderMap, next: String, problem: Option<String>) -> Response {
    let secret = secret();
    let set = set(headers, LOGIN_COOKIE, &secret, LIFE.as_secs());
    let frame = Frame::bare(desk, None, "login");
    let mut response = html(
        StatusCode::OK,
        &LoginPage {
            frame,
            secret,
            next,
            problem,
        },
    );
    response.headers_mut().append(SET_COOKIE, set);
    response
}

/// A cookie for these pages alone, which no script can read and no other site can send.
fn set(headers: &HeaderMap, name: &str, value: &str, seconds: u64) -> HeaderValue {
    let is_tls = headers
        .get(FORWARDED_PROTO)
        .is_some_and(|proto| proto == "https");
    let secure = if is_tls { "; Secure" } else { "" };
    let cookie =
        format!("{name}={value}; Path=/ops; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}");
    HeaderValue::try_from(cookie).expect("names and secrets are letters and digits")
}

/// Where to go after the login: a page of ours, or the first one.
fn safe(next: Option<&str>) -> &str {
    let is_ours = |next: &&str| {
        let page = next.split(['?', '#']).next().unwrap_or_default();
        (page == "/ops" || page.starts_with("/ops/"))
            && !page.contains("..")
            && next.len() <= NEXT_MAX
            && next
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && byte != b'\\')
    };
    next.filter(is_ours).unwrap_or("/ops")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_leads_to_a_page_of_ours_and_nowhere_else() {
        for ours in ["/ops", "/ops/rows?class=a%20b", "/ops/row?key=1"] {
            assert_eq!(safe(Some(ours)), ours);
        }
        for other in [
            "",
            "/",
            "/opsx",
            "//evil.example/ops",
            "https://evil.example/ops",
            "/ops/../metrics",
            "/ops\\evil",
            "/ops/\r\nset-cookie: a=b",
            "javascript:alert(1)",
        ] {
            assert_eq!(safe(Some(other)), "/ops", "{other}");
        }
        assert_eq!(safe(None), "/ops");
    }

    #[test]
    fn a_cookie_is_for_these_pages_alone() {
        let mut headers = HeaderMap::new();
        let expected = "ops=a; Path=/ops; Max-Age=5; HttpOnly; SameSite=Strict";
        assert_eq!(set(&headers, "ops", "a", 5), expected);
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static("https"));
        assert_eq!(set(&headers, "ops", "a", 5), format!("{expected}; Secure"));
    }
}
