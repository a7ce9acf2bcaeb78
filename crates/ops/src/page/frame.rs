//! What is around every page, and the page that says why there is none.

use std::sync::LazyLock;

use askama::Template;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use sha2::{Digest as _, Sha256};
use svc_kit::http::Problem;

use super::Desk;
use super::form::BadForm;
use super::notice::Notice;
use super::session::Visitor;
use crate::error::Error;
use crate::table::Table;

const STYLE: &str = include_str!("../../templates/style.css");

/// Names the style sheet's content in its address, so that it may be kept.
static STYLE_VERSION: LazyLock<String> = LazyLock::new(|| {
    let digest = Sha256::digest(STYLE);
    digest
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect()
});

/// The style sheet.
pub(super) async fn style() -> impl IntoResponse {
    let kind = (CONTENT_TYPE, "text/css; charset=utf-8");
    std::future::ready(([kind, (CACHE_CONTROL, "public, max-age=86400")], STYLE)).await
}

/// Bar, notice and title.
pub(super) struct Frame {
    /// The service.
    pub(super) service: &'static str,
    /// Its table.
    pub(super) table: String,
    /// Who is logged in.
    pub(super) visitor: Option<Visitor>,
    /// Which link of the bar is this page.
    pub(super) here: &'static str,
    /// Above the content.
    pub(super) notice: Option<Notice>,
    /// Seconds after which the browser loads the page again.
    pub(super) refresh: Option<u32>,
    /// In the style sheet's address.
    pub(super) style: &'static str,
}

impl Frame {
    /// The frame of a page for this person; takes the notice that waits.
    pub(super) fn new(desk: &Desk, visitor: &Visitor, here: &'static str) -> Self {
        let notice = desk.sessions.notice(visitor);
        Self {
            notice,
            ..Self::bare(desk, Some(visitor), here)
        }
    }

    /// A frame without a notice.
    pub(super) fn bare(desk: &Desk, visitor: Option<&Visitor>, here: &'static str) -> Self {
        let table = desk.console.table();
        Self {
            service: match table {
                Table::Outbox { .. } => "relay",
                Table::Inbox => "pay-svc",
            },
            table: table.name().to_owned(),
            visitor: visitor.cloned(),
            here,
            notice: None,
            refresh: None,
            style: &STYLE_VERSION,
        }
    }

    /// Whether buttons are shown.
    pub(super) fn may_act(&self) -> bool {
        self.visitor.as_ref().is_some_and(Visitor::may_act)
    }

    /// Goes into every form.
    pub(super) fn csrf(&self) -> &str {
        self.visitor.as_ref().map_or("", |visitor| &visitor.csrf)
    }
}

/// A page, with a status.
pub(super) fn page(status: StatusCode, template: &impl Template) -> Response {
    match template.render() {
        Ok(html) => (status, Html(html)).into_response(),
        Err(err) => {
            tracing::error!(error = %err, "a page can't be written");
            svc_kit::http::internal().into_response()
        }
    }
}

#[derive(Template)]
#[template(path = "trouble.html")]
struct TroublePage<'a> {
    frame: Frame,
    trouble: &'a Trouble,
}

/// Why there is no page, in words, and what to do next.
#[derive(Debug)]
pub(super) struct Trouble {
    status: StatusCode,
    text: String,
    hint: String,
    retry_after: Option<u64>,
}

impl Trouble {
    /// What went wrong, and what to do next.
    pub(super) fn new(
        status: StatusCode,
        text: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        let (text, hint) = (text.into(), hint.into());
        Self {
            status,
            text,
            hint,
            retry_after: None,
        }
    }

    /// The form does not come from a page of this login.
    pub(super) fn foreign_form() -> Self {
        let text = "This form was not sent from a page of yours, so nothing was done.";
        let hint = "Open the page again and send the form from there: the login may have changed.";
        Self::new(StatusCode::FORBIDDEN, text, hint)
    }

    /// The form can't be read.
    pub(super) fn bad_form(err: &BadForm) -> Self {
        let text = format!("Nothing was done: {err}.");
        Self::new(StatusCode::BAD_REQUEST, text, "Use the page's own form.")
    }

    /// There is no such row or bulk.
    pub(super) fn missing(what: &str) -> Self {
        let text = format!("There is no {what}.");
        let hint = "It may have been done and cleaned up since, or the address is wrong.";
        Self::new(StatusCode::NOT_FOUND, text, hint)
    }

    /// What the console could not do.
    pub(super) fn of(err: &Error) -> Self {
        let Problem {
            status,
            title,
            detail,
            retry_after,
            errors,
            ..
        } = err.problem();
        let wrong: Vec<String> = errors
            .iter()
            .map(|error| format!("{} {}", error.field, error.detail))
            .collect();
        let (text, hint) = match (wrong.is_empty(), detail) {
            (false, _) => (
                format!("Nothing was done: {}.", wrong.join("; ")),
                "Go back, fix it and send it again.".to_owned(),
            ),
            (true, Some(detail)) => (format!("{title}."), format!("Next: {detail}.")),
            (true, None) if status.is_server_error() => (
                format!("{title}."),
                "The reason is in the service's log. Look at the row before you try again."
                    .to_owned(),
            ),
            (true, None) => (format!("{title}."), "Nothing was done.".to_owned()),
        };
        let retry_after = retry_after.map(|after| after.as_secs().max(1));
        Self {
            status,
            text,
            hint,
            retry_after,
        }
    }

    /// For the heading.
    fn title(&self) -> &'static str {
        match self.status.as_u16() {
            404 => "Not found",
            403 => "Not allowed",
            503 => "Not possible at the moment",
            500.. => "Something went wrong",
            _ => "That did not work",
        }
    }

    /// The page that says so.
    pub(super) fn page(&self, desk: &Desk, visitor: Option<&Visitor>) -> Response {
        let frame = Frame::bare(desk, visitor, "");
        let mut response = page(
            self.status,
            &TroublePage {
                frame,
                trouble: self,
            },
        );
        if let Some(seconds) = self.retry_after {
            response
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
