//! Carrying a verb out and printing what came of it.

use std::io::{Read as _, Write as _};

use serde::Serialize;
use svc_kit::boot::{ConfigError, Exit, block_on};
use svc_kit::migrate::check_own;
use svc_kit::telemetry;

use super::Source;
use super::args::{BulkVerb, EditArgs, RetryArgs, StartArgs, Verb, With};
use super::screen::Screen;
use crate::act::Outcome;
use crate::audit::By;
use crate::bulk::{BulkAct, BulkOutcome, Plan};
use crate::console::{Console, Settings};
use crate::edit::Edit;
use crate::error::Error;
use crate::filter::Filter;

/// Carries a verb out.
///
/// # Errors
/// [`ConfigError`] for what the caller can fix in the command, else the database's.
pub fn run<S: Source>(verb: &Verb<S>) -> anyhow::Result<Exit> {
    match verb {
        Verb::List(with) => show(with, async |console, verb| {
            Ok(Some(console.list(&verb.filter, &verb.page).await?))
        }),
        Verb::Groups(with) => show(with, async |console, filter| {
            Ok(Some(console.groups(filter).await?))
        }),
        Verb::Show(with) => show(with, async |console, verb| console.detail(&verb.key).await),
        Verb::Retry(with) if with.verb.all => {
            let plan = Plan {
                filter: with.verb.filter.clone(),
                ..Plan::default()
            };
            let by = with.verb.by.by(with.verb.reason.as_deref());
            bulk(with, &plan, &by)
        }
        Verb::Retry(with) => {
            let RetryArgs { filter, .. } = &with.verb;
            if *filter != Filter::default() {
                let problem = "a filter beside keys says nothing";
                return Err(ConfigError::new("--all", problem, "give keys or --all").into());
            }
            act(with, async |console, verb| {
                let by = verb.by.by(verb.reason.as_deref());
                console.retry(&verb.keys, &by).await
            })
        }
        Verb::Discard(with) => act(with, async |console, verb| {
            let by = verb.by.by(Some(&verb.reason));
            console.discard(&verb.keys, &by).await
        }),
        Verb::Restore(with) => act(with, async |console, verb| {
            let by = verb.by.by(verb.reason.as_deref());
            console.restore(&verb.keys, &by).await
        }),
        Verb::Note(with) => act(with, async |console, verb| {
            let by = verb.by.by(Some(&verb.note));
            Ok(vec![console.note(&verb.key, &by).await?])
        }),
        Verb::Edit(with) => edit(with),
        Verb::Bulk(verb) => run_bulk(verb),
        Verb::Actions(with) if with.verb.csv => carry_out(with, async |console, verb| {
            let actions = console.actions(&verb.filter).await?;
            if let Some(next) = actions.next {
                // Beside the file, which may go anywhere.
                _ = writeln!(
                    std::io::stderr(),
                    "there is more: go on with --before {next}"
                );
            }
            Ok((actions.csv(), Exit::Drained))
        }),
        Verb::Actions(with) => show(with, async |console, verb| {
            Ok(Some(console.actions(&verb.filter).await?))
        }),
    }
}

fn run_bulk<S: Source>(verb: &BulkVerb<S>) -> anyhow::Result<Exit> {
    match verb {
        BulkVerb::Start(with) => {
            let StartArgs {
                filter,
                canary,
                canary_wait,
                rate,
                max,
                reason,
                by,
            } = &with.verb;
            let plan = Plan {
                filter: filter.clone(),
                canary: *canary,
                canary_wait: *canary_wait,
                rate: *rate,
                max: *max,
            };
            bulk(with, &plan, &by.by(reason.as_deref()))
        }
        BulkVerb::Show(with) => match with.verb.id {
            Some(id) => show(with, async |console, _| console.bulk(id).await),
            None => show(with, async |console, _| Ok(Some(console.bulks().await?))),
        },
        BulkVerb::Pause(with) => bulk_act(with, BulkAct::Pause),
        BulkVerb::Resume(with) => bulk_act(with, BulkAct::Resume),
        BulkVerb::Cancel(with) => bulk_act(with, BulkAct::Cancel),
    }
}

/// Runs work on a console and prints its text.
fn carry_out<S: Source, V: clap::Args>(
    with: &With<S, V>,
    work: impl AsyncFnOnce(&Console, &V) -> Result<(String, Exit), Error>,
) -> anyhow::Result<Exit> {
    carry_out_with(with, Settings::default(), work)
}

fn carry_out_with<S: Source, V: clap::Args>(
    with: &With<S, V>,
    settings: Settings,
    work: impl AsyncFnOnce(&Console, &V) -> Result<(String, Exit), Error>,
) -> anyhow::Result<Exit> {
    telemetry::init(with.source.log_format());
    let (table, url, lease) = with.source.resolve()?;
    let sets = with.source.sets()?;
    let settings = Settings { lease, ..settings };
    let (text, exit) = block_on(async {
        check_own(&url, &sets).await?;
        let console = Console::new(table, url, settings);
        work(&console, &with.verb).await.map_err(wrong_usage)
    })?;
    write!(std::io::stdout().lock(), "{text}")?;
    Ok(exit)
}

/// What the caller can fix is wrong usage; the rest is a failure.
fn wrong_usage(err: Error) -> anyhow::Error {
    match err {
        Error::Invalid { field, problem } => ConfigError::new(field, problem, "see --help").into(),
        Error::EditOff => {
            let problem = "editing is off";
            ConfigError::new("OPS_ALLOW_EDIT", problem, "set it to true").into()
        }
        err => err.into(),
    }
}

fn print<T: Screen + Serialize>(found: &T, json: bool) -> String {
    match json {
        true => {
            let json = serde_json::to_string_pretty(found);
            json.expect("what is shown is always JSON") + "\n"
        }
        false => found.screen(),
    }
}

fn show<S: Source, V: clap::Args, T: Screen + Serialize>(
    with: &With<S, V>,
    read: impl AsyncFnOnce(&Console, &V) -> Result<Option<T>, Error>,
) -> anyhow::Result<Exit> {
    carry_out(with, async |console, verb| {
        Ok(match read(console, verb).await? {
            Some(found) => (print(&found, with.json), Exit::Drained),
            None => ("there is no such row or bulk\n".to_owned(), Exit::Failed),
        })
    })
}

/// One line for each row; 1 when one of them was not done.
fn act<S: Source, V: clap::Args>(
    with: &With<S, V>,
    change: impl AsyncFnOnce(&Console, &V) -> Result<Vec<Outcome>, Error>,
) -> anyhow::Result<Exit> {
    carry_out(with, async |console, verb| {
        let outcomes = change(console, verb).await?;
        let exit = exit(&outcomes);
        Ok((print(&outcomes, with.json), exit))
    })
}

fn exit(outcomes: &[Outcome]) -> Exit {
    let all = outcomes
        .iter()
        .all(|outcome| matches!(outcome, Outcome::Done { .. }));
    if all { Exit::Drained } else { Exit::Failed }
}

fn edit<S: Source>(with: &With<S, EditArgs>) -> anyhow::Result<Exit> {
    let settings = Settings {
        allow_edit: with.verb.allow_edit,
        ..Settings::default()
    };
    let payload = match &with.verb.payload {
        None => None,
        Some(path) => Some(read_payload(path).map_err(|err| {
            let problem = format!("can't read {}: {err}", path.display());
            ConfigError::new("--payload", problem, "name a file with UTF-8 text")
        })?),
    };
    carry_out_with(with, settings, async |console, verb| {
        let headers = verb.headers.iter().cloned().collect();
        let edit = Edit {
            event_type: verb.event_type.clone(),
            exchange: verb.exchange.clone(),
            routing_key: verb.routing_key.clone(),
            content_type: verb.content_type.clone(),
            headers: (!verb.headers.is_empty()).then_some(headers),
            payload,
        };
        let by = verb.by.by(Some(&verb.reason));
        let edited = console.edit(&verb.key, &edit, &by).await?;
        let exit = exit(std::slice::from_ref(&edited.original));
        Ok((print(&edited, with.json), exit))
    })
}

fn read_payload(path: &std::path::Path) -> std::io::Result<String> {
    match path.to_str() {
        Some("-") => {
            let mut text = String::new();
            std::io::stdin().lock().read_to_string(&mut text)?;
            Ok(text)
        }
        _ => std::fs::read_to_string(path),
    }
}

/// Begins a bulk and puts it together to its end.
fn bulk<S: Source, V: clap::Args>(with: &With<S, V>, plan: &Plan, by: &By) -> anyhow::Result<Exit> {
    carry_out(with, async |console, _| {
        let id = console.bulk_start(plan, by).await?;
        if let Err(err) = console.bulk_carry_out(id).await {
            let text =
                "what is in goes its way; the service, or `bulk resume`, goes on with the rest";
            tracing::error!(bulk = id, error = %err, text, "bulk is not complete");
            return Err(err);
        }
        Ok(match console.bulk(id).await? {
            Some(bulk) => (print(&bulk, with.json), Exit::Drained),
            None => (String::new(), Exit::Failed),
        })
    })
}

fn bulk_act<S: Source>(
    with: &With<S, super::args::BulkArgs>,
    act: BulkAct,
) -> anyhow::Result<Exit> {
    carry_out(with, async |console, verb| {
        let by = verb.by.by(verb.reason.as_deref());
        let outcome = console.bulk_act(verb.id, act, &by).await?;
        let exit = match outcome {
            BulkOutcome::Done { .. } => Exit::Drained,
            BulkOutcome::Conflict { .. }
            | BulkOutcome::Early { .. }
            | BulkOutcome::Missing { .. } => Exit::Failed,
        };
        Ok((print(&outcome, with.json), exit))
    })
}
