//! One row: everything about it, and what can be done to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use askama::Template;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse as _, Redirect, Response};

use super::Desk;
use super::form::Fields;
use super::frame::{Frame, Trouble, page as html};
use super::guard::Signed;
use super::notice::Notice;
use super::session::Visitor;
use super::show;
use super::view::{RowView, href, notice_of};
use crate::act::Outcome;
use crate::audit::By;
use crate::detail::{Detail, Form, Payload};
use crate::edit::{Edit, Edited};
use crate::error::Error;
use crate::filter::State as RowState;

#[derive(Template)]
#[template(path = "row.html")]
struct RowPage {
    frame: Frame,
    row: RowView,
    facts: Vec<(&'static str, String)>,
    error: Option<String>,
    payload: PayloadView,
    headers: Option<String>,
    attempts: Vec<AttemptView>,
    life: Vec<MomentView>,
    bulks: Vec<u64>,
    edit: Option<EditView>,
}

struct PayloadView {
    kind: &'static str,
    bytes: String,
    is_cut: bool,
    text: String,
}

struct AttemptView {
    at: String,
    attempt: u32,
    class: String,
    error: String,
}

struct MomentView {
    at: String,
    what: String,
    by: String,
    text: String,
}

/// What the edit form begins with. A text with characters that do not show, or that reorder others, is
/// `None`: it would not come back as it was, so it stays as it is.
struct EditView {
    event_type: Option<String>,
    exchange: Option<String>,
    routing_key: Option<String>,
    content_type: Option<String>,
    headers: Option<String>,
    payload: Option<String>,
    /// One of them is not offered, besides the payload.
    is_partial: bool,
}

/// Everything about one row.
pub(super) async fn page(State(desk): State<Arc<Desk>>, visitor: Visitor, uri: Uri) -> Response {
    let shown = match key(&uri) {
        Ok(key) => show(&desk, &visitor, &key, None).await,
        Err(trouble) => Err(trouble),
    };
    shown.unwrap_or_else(|trouble| trouble.page(&desk, Some(&visitor)))
}

/// Acts on it.
pub(super) async fn act(State(desk): State<Arc<Desk>>, uri: Uri, signed: Signed) -> Response {
    let done = match key(&uri) {
        Ok(key) => acted(&desk, &signed, &key).await,
        Err(trouble) => Err(trouble),
    };
    done.unwrap_or_else(|trouble| trouble.page(&desk, Some(&signed.visitor)))
}

fn key(uri: &Uri) -> Result<String, Trouble> {
    let fields = Fields::parse(uri.query().unwrap_or_default().as_bytes())
        .map_err(|err| Trouble::bad_form(&err))?;
    let key = fields.raw("key").map(str::to_owned);
    key.ok_or_else(|| Trouble::missing("row without a key"))
}

async fn acted(desk: &Desk, signed: &Signed, key: &str) -> Result<Response, Trouble> {
    let Signed { visitor, fields } = signed;
    let by = By {
        actor: visitor.name.clone(),
        reason: fields.get("reason").map(str::to_owned),
    };
    let (console, keys) = (&desk.console, [key.to_owned()]);
    let outcome = match fields.get("act") {
        Some("retry") => console.retry(&keys, &by).await.map(first),
        Some("discard") => console.discard(&keys, &by).await.map(first),
        Some("restore") => console.restore(&keys, &by).await.map(first),
        Some("note") => console.note(key, &by).await.map(Some),
        Some("edit") => return edited(desk, signed, key, &by).await,
        _ => Err(Error::invalid("act", "is not one of this page's")),
    };
    let outcome = outcome.map_err(|err| Trouble::of(&err))?;
    let is_note = fields.get("act") == Some("note");
    match outcome {
        Some(Outcome::Done { .. }) if is_note => Ok(again(
            desk,
            visitor,
            key,
            Notice::good("The note is written."),
        )),
        Some(done @ Outcome::Done { .. }) => {
            Ok(again(desk, visitor, key, notice_of(console.table(), &done)))
        }
        Some(conflict @ Outcome::Conflict { .. }) => {
            let notice = notice_of(console.table(), &conflict);
            show(desk, visitor, key, Some((StatusCode::CONFLICT, notice))).await
        }
        Some(Outcome::Missing { .. }) | None => Err(Trouble::missing("such row")),
    }
}

fn first(outcomes: Vec<Outcome>) -> Option<Outcome> {
    outcomes.into_iter().next()
}

/// To the row's page, which says what was done: a page that is loaded again does nothing twice.
fn again(desk: &Desk, visitor: &Visitor, key: &str, notice: Notice) -> Response {
    desk.sessions.notify(visitor, notice);
    Redirect::to(&href(key)).into_response()
}

async fn edited(desk: &Desk, signed: &Signed, key: &str, by: &By) -> Result<Response, Trouble> {
    let trouble = |err: Error| Trouble::of(&err);
    let detail = desk.console.detail(key).await.map_err(trouble)?;
    let detail = detail.ok_or_else(|| Trouble::missing("such row"))?;
    let edit = changes(&detail, &signed.fields).map_err(trouble)?;
    let done = desk.console.edit(key, &edit, by).await.map_err(trouble)?;
    match done {
        Edited {
            key: Some(new),
            message_id,
            ..
        } => {
            let id = show::line(&message_id.unwrap_or_default());
            let text = format!(
                "This is the new message {id}. Row {} is discarded.",
                show::line(key)
            );
            Ok(again(desk, &signed.visitor, &new, Notice::good(text)))
        }
        Edited { original, .. } => {
            let notice = notice_of(desk.console.table(), &original);
            show(
                desk,
                &signed.visitor,
                key,
                Some((StatusCode::CONFLICT, notice)),
            )
            .await
        }
    }
}

/// What the form has that the row has not.
fn changes(detail: &Detail, fields: &Fields) -> Result<Edit, Error> {
    let (row, begun) = (&detail.row, EditView::of(detail));
    let other = |name: &str, own: Option<&String>| {
        let sent = fields.raw(name).map(str::trim)?;
        (sent != own.map_or("", String::as_str)).then(|| sent.to_owned())
    };
    let headers = match fields.raw("headers").map(unix) {
        Some(text)
            if begun.headers.as_deref().map(unix).as_ref() != Some(&text)
                && !text.trim().is_empty() =>
        {
            let read: BTreeMap<String, String> = serde_json::from_str(&text).map_err(|err| {
                Error::invalid("headers", format!("are not a JSON object of texts: {err}"))
            })?;
            Some(read)
        }
        _ => None,
    };
    let payload = match (fields.raw("payload").map(unix), begun.payload) {
        (Some(sent), Some(own)) if sent != unix(&own) => Some(sent),
        _ => None,
    };
    Ok(Edit {
        event_type: other("type", row.event_type.as_ref()),
        exchange: other("exchange", row.exchange.as_ref()),
        routing_key: other("routing_key", row.routing_key.as_ref()),
        content_type: other("content_type", detail.content_type.as_ref()),
        headers,
        payload,
    })
}

/// A browser sends each line break of a text field as CR LF, whatever it was.
fn unix(text: &str) -> String {
    text.replace("\r\n", "\n")
}

async fn show(
    desk: &Desk,
    visitor: &Visitor,
    key: &str,
    answer: Option<(StatusCode, Notice)>,
) -> Result<Response, Trouble> {
    let found = desk.console.detail(key).await;
    let found = found.map_err(|err| Trouble::of(&err))?;
    let detail = found.ok_or_else(|| Trouble::missing("such row"))?;
    let mut frame = Frame::new(desk, visitor, "rows");
    let mut status = StatusCode::OK;
    if let Some((code, notice)) = answer {
        (status, frame.notice) = (code, Some(notice));
    }
    let can_edit =
        desk.console.allows_edit() && frame.may_act() && detail.row.state == RowState::Parked;
    let page = RowPage {
        frame,
        row: RowView::of(&detail.row),
        facts: facts(&detail),
        error: detail.row.last_error.as_deref().map(show::lines),
        payload: PayloadView::of(&detail.payload),
        headers: detail.headers.as_deref().map(pretty),
        attempts: detail.attempts.iter().rev().map(AttemptView::of).collect(),
        life: detail.life.iter().map(MomentView::of).collect(),
        bulks: detail.bulks.clone(),
        edit: can_edit.then(|| EditView::of(&detail)),
    };
    Ok(html(status, &page))
}

fn facts(detail: &Detail) -> Vec<(&'static str, String)> {
    let row = &detail.row;
    let line = |text: &Option<String>| text.as_deref().map(show::line);
    let time = |at: &Option<String>| {
        at.as_deref()
            .map(|at| format!("{} UTC", show::time(Some(at))))
    };
    let created =
        time(&row.created_at).map(|at| format!("{at} ({} ago)", show::age(row.age_seconds)));
    let facts = [
        ("Message id", Some(show::line(&row.message_id))),
        ("Type", line(&row.event_type)),
        ("Aggregate type", line(&row.aggregate_type)),
        ("Key", line(&row.aggregate_id)),
        ("Exchange", line(&row.exchange)),
        ("Routing key", line(&row.routing_key)),
        ("Content type", line(&detail.content_type)),
        ("Created", created),
        ("Attempts", Some(row.attempts.to_string())),
        ("Not before", time(&row.next_attempt_at)),
        ("Done", time(&row.done_at)),
        ("Deliveries", row.deliveries.map(|count| count.to_string())),
    ];
    let known = facts
        .into_iter()
        .filter_map(|(name, fact)| Some((name, fact?)));
    known.filter(|(_, fact)| !fact.is_empty()).collect()
}

/// A JSON object with a line for each member; anything else as it is.
fn pretty(json: &str) -> String {
    let shown = Payload::new(json.as_bytes(), json.len() as u64);
    match shown.form {
        Form::Json => show::lines(&shown.text),
        Form::Hex => show::lines(json),
    }
}

impl PayloadView {
    fn of(payload: &Payload) -> Self {
        Self {
            kind: match payload.form {
                Form::Json => "JSON",
                Form::Hex => "bytes in hex",
            },
            bytes: show::number(payload.bytes),
            is_cut: payload.truncated,
            text: show::lines(&payload.text),
        }
    }
}

impl AttemptView {
    fn of(attempt: &crate::detail::Attempt) -> Self {
        Self {
            at: show::time(attempt.at.as_deref()),
            attempt: attempt.attempt,
            class: show::line(&attempt.class),
            error: show::lines(&attempt.error),
        }
    }
}

impl MomentView {
    fn of(moment: &crate::detail::Moment) -> Self {
        Self {
            at: show::time(moment.at.as_deref()),
            what: show::line(&moment.what),
            by: show::line(&moment.by),
            text: show::lines(&moment.text),
        }
    }
}

impl EditView {
    fn of(detail: &Detail) -> Self {
        let shows = |text: &String| {
            let text = unix(text);
            show::lines(&text) == text
        };
        let text = |text: &Option<String>| Some(text.clone().unwrap_or_default()).filter(shows);
        let row = &detail.row;
        let (event_type, exchange) = (text(&row.event_type), text(&row.exchange));
        let (routing_key, headers) = (text(&row.routing_key), text(&detail.headers));
        let content_type = detail.content_type.clone().filter(shows);
        let others = [&event_type, &exchange, &routing_key, &headers];
        Self {
            is_partial: others.iter().any(|text| text.is_none())
                || content_type.is_some() != detail.content_type.is_some(),
            event_type,
            exchange,
            routing_key,
            content_type,
            headers,
            payload: detail.payload.raw.clone().filter(shows),
        }
    }
}
