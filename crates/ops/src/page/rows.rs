//! The list, and what is done to the rows selected in it.

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
use super::view::{FilterView, Requested, RowView, notice_of};
use crate::act::Outcome;
use crate::audit::By;
use crate::error::Error;
use crate::filter::PageRequest;

/// Rows of a page.
const PAGE: u32 = 50;
/// Conflicts named one by one; of more, the number.
const CONFLICTS_TOLD: usize = 5;

#[derive(Template)]
#[template(path = "rows.html")]
struct RowsPage {
    frame: Frame,
    filters: FilterView,
    state: &'static str,
    state_name: &'static str,
    rows: Vec<RowView>,
    query: String,
    first_query: String,
    all_selected: bool,
    first_page: bool,
    next: Option<String>,
    looked_at: Option<String>,
}

/// The rows that match a filter, page by page.
pub(super) async fn page(State(desk): State<Arc<Desk>>, visitor: Visitor, uri: Uri) -> Response {
    let shown = show(&desk, &visitor, &uri, None).await;
    shown.unwrap_or_else(|trouble| trouble.page(&desk, Some(&visitor)))
}

/// Retries, discards or restores the selected rows.
pub(super) async fn act(State(desk): State<Arc<Desk>>, uri: Uri, signed: Signed) -> Response {
    let done = selected(&desk, &signed, &uri).await;
    done.unwrap_or_else(|trouble| trouble.page(&desk, Some(&signed.visitor)))
}

async fn selected(desk: &Desk, signed: &Signed, uri: &Uri) -> Result<Response, Trouble> {
    let Signed { visitor, fields } = signed;
    let keys: Vec<String> = fields.all("row").map(str::to_owned).collect();
    if keys.is_empty() {
        let notice = Notice::warn("No row was selected: tick the rows first.");
        return show(
            desk,
            visitor,
            uri,
            Some((StatusCode::UNPROCESSABLE_ENTITY, notice)),
        )
        .await;
    }
    let by = By {
        actor: visitor.name.clone(),
        reason: fields.get("reason").map(str::to_owned),
    };
    let outcomes = match fields.get("act") {
        Some("retry") => desk.console.retry(&keys, &by).await,
        Some("discard") => desk.console.discard(&keys, &by).await,
        Some("restore") => desk.console.restore(&keys, &by).await,
        _ => Err(Error::invalid("act", "is not retry, discard or restore")),
    };
    let outcomes = outcomes.map_err(|err| Trouble::of(&err))?;
    let conflicts: Vec<String> = outcomes
        .iter()
        .filter(|outcome| !matches!(outcome, Outcome::Done { .. }))
        .map(|outcome| notice_of(desk.console.table(), outcome).text)
        .collect();
    let done = outcomes.len() - conflicts.len();
    let what = match fields.get("act") {
        Some("retry") => "tried again now",
        Some("discard") => "discarded",
        _ => "parked again",
    };
    let are = if done == 1 { "is" } else { "are" };
    let count = show::rows(u64::try_from(done).unwrap_or(u64::MAX));
    let mut text = format!("{count} {are} {what}.");
    if conflicts.is_empty() {
        desk.sessions.notify(visitor, Notice::good(text));
        return Ok(Redirect::to(&uri.to_string()).into_response());
    }
    for conflict in conflicts.iter().take(CONFLICTS_TOLD) {
        text.push(' ');
        text.push_str(conflict);
    }
    if conflicts.len() > CONFLICTS_TOLD {
        text.push_str(&format!(" And {} more.", conflicts.len() - CONFLICTS_TOLD));
    }
    show(
        desk,
        visitor,
        uri,
        Some((StatusCode::CONFLICT, Notice::warn(text))),
    )
    .await
}

async fn show(
    desk: &Desk,
    visitor: &Visitor,
    uri: &Uri,
    answer: Option<(StatusCode, Notice)>,
) -> Result<Response, Trouble> {
    let fields = Fields::parse(uri.query().unwrap_or_default().as_bytes())
        .map_err(|err| Trouble::bad_form(&err))?;
    let requested = Requested::of(&fields).map_err(|err| Trouble::of(&err))?;
    let request = PageRequest {
        order: requested.order,
        limit: PAGE,
        after: requested.after.clone(),
    };
    let found = desk.console.list(&requested.filter, &request).await;
    let found = found.map_err(|err| Trouble::of(&err))?;
    let table = desk.console.table();
    let mut frame = Frame::new(desk, visitor, "rows");
    let mut status = StatusCode::OK;
    if let Some((code, notice)) = answer {
        (status, frame.notice) = (code, Some(notice));
    }
    let after = requested.after.as_deref().unwrap_or_default();
    let page = RowsPage {
        frame,
        filters: FilterView::of(table, &requested, "/ops/rows"),
        state: requested.filter.state.name(),
        state_name: table.state_name(requested.filter.state),
        rows: found.rows.iter().map(RowView::of).collect(),
        query: requested.query(&[("after", after)]),
        first_query: requested.query(&[]),
        all_selected: fields.get("selected") == Some("all"),
        first_page: requested.after.is_none(),
        next: found.next.map(|next| requested.query(&[("after", &next)])),
        looked_at: found.looked_at.map(|rows| show::number(rows.into())),
    };
    Ok(html(status, &page))
}
