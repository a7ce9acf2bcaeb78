//! What is done to single rows, and who learns that somebody else was first.

use std::collections::BTreeMap;

use ops::audit::ActionFilter;
use ops::edit::{Edit, PARENT};
use ops::{By, Error, Outcome, State};
use svc_kit::tasks;

use crate::{World, by, world, worlds};

async fn actions(world: &World) -> Vec<(String, String)> {
    let found = world.console.actions(&ActionFilter::default()).await;
    let actions = found.unwrap().actions.into_iter().rev();
    actions
        .map(|action| (action.actor, action.action))
        .collect()
}

fn is_done(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Done { .. })
}

#[expect(clippy::too_many_lines, reason = "one row through all of its states")]
#[tokio::test]
async fn each_act_fits_its_states_alone_and_is_in_the_audit() {
    for world in worlds().await {
        let key = world.park("m", 1, "too_large").await;
        let console = &world.console;
        let no_reason = By {
            actor: "ann".to_owned(),
            reason: Some("  ".to_owned()),
        };
        let refused = console.discard(&key, &no_reason).await;
        assert!(matches!(
            refused,
            Err(Error::Invalid {
                field: "reason",
                ..
            })
        ));
        let refused = console.restore(&key, &by("ann")).await.unwrap();
        assert!(matches!(
            refused[0],
            Outcome::Conflict {
                now: State::Parked,
                ..
            }
        ));
        assert_eq!(actions(&world).await, []);

        assert!(is_done(
            &console.discard(&key, &by("ann")).await.unwrap()[0]
        ));
        assert_eq!(world.count("status = 4").await, 1);
        let conflict = console.retry(&key, &by("bob")).await.unwrap().remove(0);
        let Outcome::Conflict {
            now: State::Discarded,
            last: Some(last),
            ..
        } = conflict
        else {
            panic!("{conflict:?}")
        };
        assert_eq!(
            (last.actor.as_str(), last.action.as_str()),
            ("ann", "discard")
        );
        assert!(is_done(
            &console.restore(&key, &by("bob")).await.unwrap()[0]
        ));
        assert!(is_done(&console.retry(&key, &by("bob")).await.unwrap()[0]));
        let due = "status = 1 AND attempts = 0 AND next_attempt_at <= UTC_TIMESTAMP(6) \
                   AND last_error IS NOT NULL";
        assert_eq!(world.count(due).await, 1);
        // Due, so there is nothing to hurry.
        let again = console.retry(&key, &by("bob")).await.unwrap();
        assert!(matches!(
            again[0],
            Outcome::Conflict {
                now: State::Waiting,
                ..
            }
        ));
        world
            .sql("UPDATE TABLE SET attempts = 2, next_attempt_at = UTC_TIMESTAMP(6) + INTERVAL 1 HOUR")
            .await;
        assert!(is_done(&console.retry(&key, &by("bob")).await.unwrap()[0]));
        let due = "status = 1 AND attempts = 2 AND next_attempt_at <= UTC_TIMESTAMP(6)";
        assert_eq!(world.count(due).await, 1);
        let missing = console
            .retry(&["4711".to_owned()], &by("ann"))
            .await
            .unwrap();
        assert!(matches!(missing[0], Outcome::Missing { .. }));
        let audit = [
            ("ann", "discard"),
            ("bob", "restore"),
            ("bob", "retry"),
            ("bob", "retry"),
        ];
        let audit = audit.map(|(who, what)| (who.to_owned(), what.to_owned()));
        assert_eq!(actions(&world).await, audit);
    }
}

/// A worker claims a row by moving `next_attempt_at` ahead: that must not be taken for a wait.
#[tokio::test]
async fn an_inbox_row_that_may_be_claimed_is_not_hurried() {
    let world = world(ops::Table::Inbox).await;
    let key = world.park("m", 1, "provider_error").await;
    world
        .sql("UPDATE TABLE SET status = 1, next_attempt_at = UTC_TIMESTAMP(6) + INTERVAL 19 SECOND")
        .await;
    let outcome = world.console.retry(&key, &by("ann")).await.unwrap();
    assert!(matches!(
        outcome[0],
        Outcome::Conflict {
            now: State::Waiting,
            ..
        }
    ));
}

#[tokio::test]
async fn of_two_operators_at_once_one_wins_and_the_other_is_reported() {
    for world in worlds().await {
        let keys = world.park("m", 40, "too_large").await;
        for key in keys {
            let (one, two) = (world.console.clone(), world.console.clone());
            let (a, b) = (vec![key.clone()], vec![key]);
            let one = tasks::unit(async move { one.discard(&a, &by("ann")).await.unwrap() });
            let two = tasks::unit(async move { two.retry(&b, &by("bob")).await.unwrap() });
            let (one, two) = (one.await.unwrap().remove(0), two.await.unwrap().remove(0));
            let reported = |outcome: &Outcome, winner: &str| match outcome {
                Outcome::Conflict {
                    last: Some(last), ..
                } => last.actor == winner,
                _ => false,
            };
            assert!(
                (is_done(&one) && reported(&two, "ann"))
                    || (is_done(&two) && reported(&one, "bob")),
                "{one:?} {two:?}"
            );
        }
        assert_eq!(actions(&world).await.len(), 40);
    }
}

#[tokio::test]
async fn an_edit_is_a_new_message_and_the_original_stays() {
    for world in worlds().await {
        let key = world.park("m", 1, "too_large").await.remove(0);
        let is_outbox = matches!(world.console.table(), ops::Table::Outbox { .. });
        for (edit, field) in [
            (
                Edit {
                    payload: Some("{".to_owned()),
                    ..Edit::default()
                },
                "payload",
            ),
            (
                Edit {
                    event_type: Some(String::new()),
                    ..Edit::default()
                },
                "event_type",
            ),
            (
                Edit {
                    routing_key: Some("k".repeat(256)),
                    ..Edit::default()
                },
                "routing_key",
            ),
        ] {
            let refused = world.console.edit(&key, &edit, &by("ann")).await;
            match (refused, is_outbox) {
                (Err(Error::Invalid { field: f, .. }), true) => assert_eq!(f, field),
                (Err(Error::Invalid { .. }), false) => {}
                // The inbox keeps what fits of a routing key, as it does of a delivery's.
                (Ok(_), false) if field == "routing_key" => {
                    world
                        .sql("DELETE FROM TABLE WHERE message_id <> 'm0'")
                        .await;
                    world.sql("UPDATE TABLE SET status = 3").await;
                }
                (other, _) => panic!("{field}: {other:?}"),
            }
            assert_eq!(world.count("TRUE").await, 1);
        }
        let edit = Edit {
            payload: Some("{\"n\":2}".to_owned()),
            headers: Some(BTreeMap::from([("x".to_owned(), "y".to_owned())])),
            ..Edit::default()
        };
        let edited = world.console.edit(&key, &edit, &by("ann")).await.unwrap();
        assert!(is_done(&edited.original), "{edited:?}");
        let new = world.console.detail(&edited.key.unwrap()).await;
        let new = new.unwrap().unwrap();
        assert_eq!(new.row.state, State::Waiting);
        assert_eq!(Some(&new.row.message_id), edited.message_id.as_ref());
        assert_eq!(new.payload.raw.as_deref(), Some("{\"n\":2}"));
        let headers: BTreeMap<String, String> =
            serde_json::from_str(new.headers.as_deref().unwrap()).unwrap();
        assert_eq!(
            (headers[PARENT].as_str(), headers["x"].as_str()),
            ("m0", "y")
        );
        assert_eq!(new.row.aggregate_id.as_deref(), Some("k0"));
        let old = world.console.detail(&key).await.unwrap().unwrap();
        assert_eq!(old.row.state, State::Discarded);
        assert_eq!(old.payload.raw.as_deref(), Some("{\"n\":1}"));
        let audit = world.console.actions(&Default::default()).await.unwrap();
        let after = audit.actions[0].after.clone().unwrap();
        assert!(after.starts_with("waiting; changed "), "{after}");
        let again = world.console.edit(&key, &edit, &by("bob")).await.unwrap();
        assert!(matches!(again.original, Outcome::Conflict { .. }) && again.key.is_none());
    }
}

#[tokio::test]
async fn the_audit_is_filtered_and_pages_hold_every_action_once() {
    for world in worlds().await {
        let keys = world.park("m", 9, "too_large").await;
        world.console.retry(&keys, &by("ann")).await.unwrap();
        world.console.note(&keys[3], &by("=bob")).await.unwrap();
        let of = |filter: ActionFilter| {
            let console = world.console.clone();
            async move { console.actions(&filter).await.unwrap() }
        };
        let bobs = of(ActionFilter {
            actor: Some("=bob".to_owned()),
            ..Default::default()
        })
        .await;
        assert_eq!(bobs.actions.len(), 1);
        assert!(bobs.csv().contains("\"'=bob\",\"note\""), "{}", bobs.csv());
        let target = ActionFilter {
            target: Some(keys[3].clone()),
            ..Default::default()
        };
        assert_eq!(of(target).await.actions.len(), 2);
        let none = ActionFilter {
            action: Some("é".to_owned()),
            ..Default::default()
        };
        assert_eq!(of(none).await.actions.len(), 0);
        let (mut seen, mut before) = (Vec::new(), None);
        loop {
            let page = of(ActionFilter {
                limit: Some(4),
                before,
                ..Default::default()
            })
            .await;
            seen.extend(page.actions.iter().map(|action| action.id));
            before = page.next;
            if before.is_none() {
                break;
            }
        }
        assert_eq!(seen.len(), 10);
        assert!(seen.is_sorted_by(|a, b| a > b), "{seen:?}");
    }
}
