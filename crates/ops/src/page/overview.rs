//! The first page: what is parked, by the class of its failure.

use std::sync::Arc;

use askama::Template;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::Response;

use super::Desk;
use super::form::Fields;
use super::frame::{Frame, Trouble, page as html};
use super::session::Visitor;
use super::show;
use super::view::{FilterView, Requested};
use crate::groups::{Group, Groups};

#[derive(Template)]
#[template(path = "overview.html")]
struct OverviewPage {
    frame: Frame,
    filters: FilterView,
    state: &'static str,
    groups: Vec<GroupView>,
    total: String,
    looked_at: Option<String>,
    /// Rows in this state can be retried together.
    can_retry: bool,
    all_query: String,
}

struct GroupView {
    class: Option<String>,
    rows: String,
    oldest: String,
    query: String,
}

/// The groups of what matches a filter.
pub(super) async fn page(State(desk): State<Arc<Desk>>, visitor: Visitor, uri: Uri) -> Response {
    match groups(&desk, &visitor, &uri).await {
        Ok(response) => response,
        Err(trouble) => trouble.page(&desk, Some(&visitor)),
    }
}

async fn groups(desk: &Desk, visitor: &Visitor, uri: &Uri) -> Result<Response, Trouble> {
    let fields = Fields::parse(uri.query().unwrap_or_default().as_bytes())
        .map_err(|err| Trouble::bad_form(&err))?;
    let requested = Requested::of(&fields).map_err(|err| Trouble::of(&err))?;
    let found = desk.console.groups(&requested.filter).await;
    let Groups {
        groups, looked_at, ..
    } = found.map_err(|err| Trouble::of(&err))?;
    let table = desk.console.table();
    let total = groups.iter().map(|group| group.rows).sum();
    let page = OverviewPage {
        frame: Frame::new(desk, visitor, "overview"),
        filters: FilterView::of(table, &requested, "/ops"),
        state: table.state_name(requested.filter.state),
        groups: groups.iter().map(|group| view(group, &requested)).collect(),
        total: show::rows(total),
        looked_at: looked_at.map(|rows| show::number(rows.into())),
        can_retry: matches!(
            requested.filter.state,
            crate::State::Parked | crate::State::Waiting
        ),
        all_query: requested.query(&[]),
    };
    Ok(html(StatusCode::OK, &page))
}

fn view(group: &Group, requested: &Requested) -> GroupView {
    let mut of_class = requested.clone();
    of_class.filter.class.clone_from(&group.class);
    GroupView {
        class: group.class.as_deref().map(show::line),
        rows: show::number(group.rows),
        oldest: show::age(group.oldest_age_seconds),
        query: of_class.query(&[]),
    }
}
