//! Bulk retry: the plan with the number of rows it will touch, then its progress.

use std::sync::Arc;
use std::time::{Duration, Instant};

use askama::Template;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse as _, Redirect, Response};

use super::Desk;
use super::form::Fields;
use super::frame::{Frame, Trouble, page as html};
use super::guard::Signed;
use super::notice::Notice;
use super::session::Visitor;
use super::show;
use super::view::Requested;
use crate::audit::By;
use crate::bulk::{Bulk, BulkAct, BulkOutcome, Plan, Progress, ROWS_MAX};
use crate::error::Error;
use crate::table::Table;

/// How often the page of a bulk under way is loaded again, in seconds; and at most a fifth of the time
/// goes into counting, which takes seconds for 100,000 rows that lie apart.
const REFRESH: u32 = 3;
const COUNTING_SHARE: u32 = 5;

#[derive(Template)]
#[template(path = "bulk_plan.html")]
struct PlanPage {
    frame: Frame,
    /// The filter, for the hidden fields.
    pairs: Vec<(&'static str, String)>,
    summary: String,
    query: String,
    rows: u64,
    row_count: String,
    is_more: bool,
    max: u32,
    /// A relay knows routes that are closed; the inbox has none.
    closes_routes: bool,
}

#[derive(Template)]
#[template(path = "bulks.html")]
struct BulksPage {
    frame: Frame,
    bulks: Vec<BulkView>,
}

#[derive(Template)]
#[template(path = "bulk.html")]
struct BulkPage {
    frame: Frame,
    bulk: BulkView,
    following: Option<String>,
    counts: Vec<(&'static str, String, &'static str)>,
    settled: u64,
    rows: u64,
    last_due: Option<String>,
}

struct BulkView {
    id: u64,
    state: &'static str,
    actor: String,
    reason: Option<String>,
    filter: String,
    canary: String,
    rate: String,
    started: String,
    changed: String,
    stopped_by: Option<String>,
    can_pause: bool,
    can_resume: bool,
    can_cancel: bool,
}

/// The form, with what it will touch.
pub(super) async fn plan(State(desk): State<Arc<Desk>>, visitor: Visitor, uri: Uri) -> Response {
    let shown = counted(&desk, &visitor, &uri).await;
    shown.unwrap_or_else(|trouble| trouble.page(&desk, Some(&visitor)))
}

async fn counted(desk: &Desk, visitor: &Visitor, uri: &Uri) -> Result<Response, Trouble> {
    let fields = Fields::parse(uri.query().unwrap_or_default().as_bytes())
        .map_err(|err| Trouble::bad_form(&err))?;
    let requested = Requested::of(&fields).map_err(|err| Trouble::of(&err))?;
    let found = desk.console.groups(&requested.filter).await;
    let found = found.map_err(|err| Trouble::of(&err))?;
    let rows = found.groups.iter().map(|group| group.rows).sum();
    let page = PlanPage {
        frame: Frame::new(desk, visitor, "bulk"),
        pairs: requested.pairs(),
        summary: show::line(&requested.filter.summary()),
        query: requested.query(&[]),
        rows,
        row_count: show::rows(rows),
        is_more: found.or_more,
        max: ROWS_MAX,
        closes_routes: matches!(desk.console.table(), Table::Outbox { .. }),
    };
    Ok(html(StatusCode::OK, &page))
}

/// Begins a bulk.
pub(super) async fn start(State(desk): State<Arc<Desk>>, signed: Signed) -> Response {
    let started = begin(&desk, &signed).await;
    started.unwrap_or_else(|trouble| trouble.page(&desk, Some(&signed.visitor)))
}

async fn begin(desk: &Desk, signed: &Signed) -> Result<Response, Trouble> {
    let Signed { visitor, fields } = signed;
    let trouble = |err: Error| Trouble::of(&err);
    let defaults = Plan::default();
    let plan = Plan {
        filter: Requested::of(fields).map_err(trouble)?.filter,
        canary: number(fields, "canary", defaults.canary).map_err(trouble)?,
        canary_wait: number(fields, "canary_wait", defaults.canary_wait).map_err(trouble)?,
        rate: number(fields, "rate", defaults.rate).map_err(trouble)?,
        max: number(fields, "max", defaults.max).map_err(trouble)?,
    };
    let by = By {
        actor: visitor.name.clone(),
        reason: fields.get("reason").map(str::to_owned),
    };
    let id = desk.console.bulk_start(&plan, &by).await.map_err(trouble)?;
    let console = desk.console.clone();
    // Rows are put in while the person watches; what becomes of that is in the table and the log.
    drop(svc_kit::tasks::unit(async move {
        console.bulk_carry_out(id).await
    }));
    desk.sessions
        .notify(visitor, Notice::good(format!("Bulk {id} has begun.")));
    Ok(Redirect::to(&format!("/ops/bulks/{id}")).into_response())
}

/// A number of a form; a field that is left empty is as its default.
fn number<T: std::str::FromStr>(
    fields: &Fields,
    name: &'static str,
    default: T,
) -> Result<T, Error> {
    let Some(text) = fields.get(name) else {
        return Ok(default);
    };
    text.parse()
        .map_err(|_| Error::invalid(name, "is not a number in its range"))
}

/// The newest bulks.
pub(super) async fn list(State(desk): State<Arc<Desk>>, visitor: Visitor) -> Response {
    match desk.console.bulks().await {
        Ok(bulks) => {
            let frame = Frame::new(&desk, &visitor, "bulk");
            let bulks = bulks.iter().map(BulkView::of).collect();
            html(StatusCode::OK, &BulksPage { frame, bulks })
        }
        Err(err) => Trouble::of(&err).page(&desk, Some(&visitor)),
    }
}

/// How far a bulk is.
pub(super) async fn page(
    State(desk): State<Arc<Desk>>,
    visitor: Visitor,
    id: Result<Path<u64>, PathRejection>,
) -> Response {
    let shown = match id {
        Ok(Path(id)) => show(&desk, &visitor, id, None).await,
        Err(_) => Err(Trouble::missing("such bulk")),
    };
    shown.unwrap_or_else(|trouble| trouble.page(&desk, Some(&visitor)))
}

/// Pauses, resumes or cancels it.
pub(super) async fn act(
    State(desk): State<Arc<Desk>>,
    id: Result<Path<u64>, PathRejection>,
    signed: Signed,
) -> Response {
    let done = match id {
        Ok(Path(id)) => acted(&desk, &signed, id).await,
        Err(_) => Err(Trouble::missing("such bulk")),
    };
    done.unwrap_or_else(|trouble| trouble.page(&desk, Some(&signed.visitor)))
}

async fn acted(desk: &Desk, signed: &Signed, id: u64) -> Result<Response, Trouble> {
    let Signed { visitor, fields } = signed;
    let (act, what) = match fields.get("act") {
        Some("pause") => (BulkAct::Pause, "paused"),
        Some("resume") => (BulkAct::Resume, "goes on"),
        Some("cancel") => (BulkAct::Cancel, "cancelled"),
        _ => {
            let err = Error::invalid("act", "is not pause, resume or cancel");
            return Err(Trouble::of(&err));
        }
    };
    let by = By {
        actor: visitor.name.clone(),
        reason: fields.get("reason").map(str::to_owned),
    };
    let outcome = desk.console.bulk_turn(id, act, &by).await;
    match outcome.map_err(|err| Trouble::of(&err))? {
        BulkOutcome::Done { .. } => {
            let is = if act == BulkAct::Resume { "" } else { "is " };
            let text = format!("Bulk {id} {is}{what}; its rows follow.");
            desk.sessions.notify(visitor, Notice::good(text));
            Ok(Redirect::to(&format!("/ops/bulks/{id}")).into_response())
        }
        BulkOutcome::Conflict { now, last, .. } => {
            let who = last.map_or_else(String::new, |last| {
                let (actor, action) = (show::line(&last.actor), show::line(&last.action));
                let at = show::time(last.at.as_deref());
                format!(" Last, {actor} did “{action}” ({at} UTC).")
            });
            let text = format!("Not done: bulk {id} is {} now.{who}", now.name());
            let answer = (StatusCode::CONFLICT, Notice::warn(text));
            show(desk, visitor, id, Some(answer)).await
        }
        BulkOutcome::Early { now, .. } => {
            let text = format!(
                "Not done: bulk {id} is {}, and its rows are still being held back.",
                now.name()
            );
            let answer = (StatusCode::CONFLICT, Notice::warn(text));
            show(desk, visitor, id, Some(answer)).await
        }
        BulkOutcome::Missing { .. } => Err(Trouble::missing("such bulk")),
    }
}

async fn show(
    desk: &Desk,
    visitor: &Visitor,
    id: u64,
    answer: Option<(StatusCode, Notice)>,
) -> Result<Response, Trouble> {
    let begun = Instant::now();
    let found = desk
        .console
        .bulk(id)
        .await
        .map_err(|err| Trouble::of(&err))?;
    let counting = begun.elapsed();
    let bulk = found.ok_or_else(|| Trouble::missing("such bulk"))?;
    let progress = bulk.progress.clone().unwrap_or_default();
    let mut frame = Frame::new(desk, visitor, "bulk");
    let mut status = StatusCode::OK;
    if let Some((code, notice)) = answer {
        (status, frame.notice) = (code, Some(notice));
    }
    let is_under_way = !bulk.followed || progress.waiting + progress.trying > 0;
    // A page with a form that somebody fills in must not be loaded again under their hands; the
    // forms here are single buttons.
    frame.refresh = is_under_way.then(|| refresh(counting));
    let page = BulkPage {
        frame,
        bulk: BulkView::of(&bulk),
        following: bulk.following(),
        counts: counts(&progress),
        settled: progress
            .rows
            .saturating_sub(progress.waiting + progress.trying),
        rows: progress.rows,
        last_due: (progress.waiting > 0).then(|| show::time(progress.last_due_at.as_deref())),
    };
    Ok(html(status, &page))
}

/// Seconds until the page is loaded again.
fn refresh(counting: Duration) -> u32 {
    let rest = (counting * (COUNTING_SHARE - 1)).as_secs();
    u32::try_from(rest).unwrap_or(u32::MAX).max(REFRESH)
}

fn counts(progress: &Progress) -> Vec<(&'static str, String, &'static str)> {
    let all = [
        ("Done", progress.done, "sent or processed"),
        ("Waiting", progress.waiting, "their time has not come"),
        (
            "Trying",
            progress.trying,
            "on their way, or tried again later",
        ),
        ("Failed", progress.failed, "failed and parked again"),
        (
            "Held back",
            progress.held,
            "by a pause, a failure or a cancel",
        ),
        ("Discarded", progress.discarded, "by a person meanwhile"),
        ("Gone", progress.gone, "done, and cleaned up since"),
    ];
    let shown = all
        .into_iter()
        .filter(|(name, count, _)| *count > 0 || *name == "Done");
    shown
        .map(|(name, count, what)| (name, show::number(count), what))
        .collect()
}

impl BulkView {
    fn of(bulk: &Bulk) -> Self {
        let canary = match bulk.canary {
            0 => "none".to_owned(),
            rows => {
                let wait = show::age(bulk.canary_wait);
                format!("{} first, the rest {wait} later", show::rows(rows.into()))
            }
        };
        let rate = if bulk.rate > 0.0 {
            format!("{} a second", bulk.rate)
        } else {
            "all at once".to_owned()
        };
        Self {
            id: bulk.id,
            state: bulk.state.name(),
            actor: show::line(&bulk.actor),
            reason: bulk.reason.as_deref().map(show::line),
            filter: show::line(&bulk.filter),
            canary,
            rate,
            started: show::time(bulk.started_at.as_deref()),
            changed: show::time(bulk.changed_at.as_deref()),
            stopped_by: bulk.stopped_by.as_deref().map(show::line),
            can_pause: BulkAct::Pause.fits(bulk.state),
            can_resume: bulk.followed && BulkAct::Resume.fits(bulk.state),
            can_cancel: BulkAct::Cancel.fits(bulk.state),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_takes_long_to_count_is_loaded_again_less_often() {
        assert_eq!(refresh(Duration::from_millis(20)), 3);
        assert_eq!(refresh(Duration::from_millis(4500)), 18);
    }
}
