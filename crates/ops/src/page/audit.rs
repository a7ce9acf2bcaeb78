//! Who did what.

use std::sync::Arc;

use askama::Template;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use futures::{StreamExt as _, stream};

use super::Desk;
use super::form::{Fields, query};
use super::frame::{Frame, Trouble, page as html};
use super::session::Visitor;
use super::show;
use super::view::searched;
use crate::audit::{Action, ActionFilter};
use crate::error::Error;

/// Actions of a page, and of one read for a file.
const PAGE: u32 = 50;
const FILE: u32 = 10_000;

#[derive(Template)]
#[template(path = "audit.html")]
struct AuditPage {
    frame: Frame,
    actor: String,
    action: String,
    target: String,
    actions: Vec<ActionView>,
    query: String,
    older: Option<String>,
    first_page: bool,
}

struct ActionView {
    at: String,
    actor: String,
    action: String,
    target: String,
    /// The row's page; other targets have none.
    href: Option<String>,
    reason: String,
    before: String,
    after: String,
}

/// The audit, the newest first.
pub(super) async fn page(State(desk): State<Arc<Desk>>, visitor: Visitor, uri: Uri) -> Response {
    let shown = listed(&desk, &visitor, &uri).await;
    shown.unwrap_or_else(|trouble| trouble.page(&desk, Some(&visitor)))
}

async fn listed(desk: &Desk, visitor: &Visitor, uri: &Uri) -> Result<Response, Trouble> {
    let filter = filter(uri, PAGE)?;
    let found = desk.console.actions(&filter).await;
    let found = found.map_err(|err| Trouble::of(&err))?;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (actor, action, target) = (
        text(&filter.actor),
        text(&filter.action),
        text(&filter.target),
    );
    let own = [
        ("actor", &*actor),
        ("action", &*action),
        ("target", &*target),
    ];
    let next = found.next.map(|next| next.to_string());
    let older = next
        .as_deref()
        .map(|next| query(own.into_iter().chain([("before", next)])));
    let page = AuditPage {
        frame: Frame::new(desk, visitor, "audit"),
        actions: found
            .actions
            .iter()
            .map(|action| view(desk, action))
            .collect(),
        query: query(own),
        older,
        first_page: filter.before.is_none(),
        actor,
        action,
        target,
    };
    Ok(html(StatusCode::OK, &page))
}

/// The same, all of it, as a file for a spreadsheet: read and sent page by page.
pub(super) async fn csv(State(desk): State<Arc<Desk>>, visitor: Visitor, uri: Uri) -> Response {
    let file = async {
        let filter = filter(&uri, FILE)?;
        let first = desk.console.actions(&filter).await;
        let first = first.map_err(|err| Trouble::of(&err))?;
        let head = first.csv();
        let rest = (desk.console.clone(), filter, first.next);
        // An error cuts the file off, which a browser reports; a file that only ended would look whole.
        let rest = stream::try_unfold(rest, async |(console, mut filter, next)| {
            if next.is_none() {
                return Ok(None);
            }
            filter.before = next;
            let page = console.actions(&filter).await?;
            let rows = page.csv_rows();
            Ok::<_, Error>(Some((rows, (console, filter, page.next))))
        });
        let file = stream::once(std::future::ready(Ok(head))).chain(rest);
        let name = format!(
            "attachment; filename=\"{}-actions.csv\"",
            desk.console.table().name()
        );
        let headers = [
            (CONTENT_TYPE, "text/csv; charset=utf-8".to_owned()),
            (CONTENT_DISPOSITION, name),
        ];
        Ok::<_, Trouble>((headers, Body::from_stream(file)).into_response())
    };
    file.await
        .unwrap_or_else(|trouble| trouble.page(&desk, Some(&visitor)))
}

fn filter(uri: &Uri, limit: u32) -> Result<ActionFilter, Trouble> {
    let fields = Fields::parse(uri.query().unwrap_or_default().as_bytes())
        .map_err(|err| Trouble::bad_form(&err))?;
    let text = |name| searched(&fields, name).map_err(|err| Trouble::of(&err));
    let before = fields.get("before").map(str::parse).transpose();
    let before = before.map_err(|_| Trouble::of(&Error::invalid("before", "is not a number")))?;
    Ok(ActionFilter {
        actor: text("actor")?,
        action: text("action")?,
        target: text("target")?,
        limit: Some(limit),
        before,
    })
}

fn view(desk: &Desk, action: &Action) -> ActionView {
    let text = |text: &Option<String>| show::lines(text.as_deref().unwrap_or_default());
    let key = desk.console.table().key(&action.target);
    // A row's target is its key; that of a bulk or a route has a space in it, which no key has.
    let is_row = key.is_some() && !action.target.contains(' ');
    ActionView {
        at: show::time(action.at.as_deref()),
        actor: show::line(&action.actor),
        action: show::line(&action.action),
        target: show::line(&action.target),
        href: is_row.then(|| super::view::href(&action.target)),
        reason: text(&action.reason),
        before: text(&action.before),
        after: text(&action.after),
    }
}
