//! What is shown: pages, filters, groups, one row whole.

use ops::detail::Form;
use ops::{Error, Filter, Order, PageRequest, State};

use crate::{World, by, worlds};

fn request(order: Order, limit: u32, after: Option<String>) -> PageRequest {
    PageRequest {
        order,
        limit,
        after,
    }
}

/// The keys of all pages.
async fn all(world: &World, filter: &Filter, order: Order, limit: u32) -> Vec<String> {
    let (mut keys, mut after) = (Vec::new(), None);
    loop {
        let page = world
            .console
            .list(filter, &request(order, limit, after))
            .await;
        let page = page.unwrap();
        keys.extend(page.rows.into_iter().map(|row| row.key));
        after = page.next;
        if after.is_none() {
            return keys;
        }
    }
}

#[tokio::test]
async fn pages_hold_every_row_once_in_either_order() {
    for world in worlds().await {
        let mut keys = world.park("m", 25, "too_large").await;
        // Many rows of the same microsecond, as an intake of a batch makes them.
        let at = world.console.table().created_column();
        world
            .sql(&format!(
                "UPDATE TABLE SET {at} = '2026-01-02 03:04:05.678901'"
            ))
            .await;
        let filter = Filter::default();
        let found = all(&world, &filter, Order::Oldest, 7).await;
        let mut sorted = found.clone();
        sorted.sort();
        keys.sort();
        assert_eq!(sorted, keys);
        let mut newest = all(&world, &filter, Order::Newest, 7).await;
        newest.reverse();
        assert_eq!(newest, found);
    }
}

#[tokio::test]
async fn each_filter_finds_its_rows_and_no_others() {
    for world in worlds().await {
        let keys = world.park("a", 3, "too_large").await;
        world.park("b", 2, "invalid").await;
        world
            .sql("UPDATE TABLE SET event_type = 'other', routing_key = 'x.y' WHERE message_id = 'a1'")
            .await;
        let created = world.console.table().created_column();
        world
            .sql(&format!(
                "UPDATE TABLE SET {created} = {created} - INTERVAL 1 HOUR WHERE message_id = 'a2'"
            ))
            .await;
        world
            .sql("UPDATE TABLE SET status = 4 WHERE message_id = 'b1'")
            .await;
        for (filter, expected) in cases() {
            let found = all(&world, &filter, Order::Newest, 2).await;
            assert_eq!(found.len(), expected, "{filter:?}");
        }
        let one = with(|filter| filter.message_id = text("a0"));
        let found = all(&world, &one, Order::Newest, 5).await;
        assert_eq!(found, [keys[0].as_str()]);
        let long = with(|filter| filter.text = text(&"x".repeat(256)));
        let refused = world.console.list(&long, &PageRequest::default()).await;
        assert!(matches!(refused, Err(Error::Invalid { field: "text", .. })));
        let lost = request(Order::Newest, 5, text("no place"));
        let refused = world.console.list(&Filter::default(), &lost).await;
        assert!(matches!(
            refused,
            Err(Error::Invalid { field: "after", .. })
        ));
    }
}

fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn with(set: impl FnOnce(&mut Filter)) -> Filter {
    let mut filter = Filter::default();
    set(&mut filter);
    filter
}

/// Filters, and how many rows each finds.
fn cases() -> [(Filter, usize); 18] {
    [
        (with(|_| ()), 4),
        (with(|f| f.state = State::Discarded), 1),
        (with(|f| f.state = State::Done), 0),
        (with(|f| f.class = text("too_large")), 3),
        (with(|f| f.class = text("ünknown")), 0),
        (with(|f| f.event_type = text("other")), 1),
        (with(|f| f.event_type = text("Other")), 0),
        (with(|f| f.event_type = text("björn\u{1f600}")), 0),
        (with(|f| f.routing_key = text("x.y")), 1),
        (with(|f| f.exchange = text("order-exchange")), 4),
        (with(|f| f.aggregate_id = text("k0")), 2),
        (with(|f| f.message_id = text("a1")), 1),
        (with(|f| f.message_id = text("é")), 0),
        (with(|f| f.older_than = Some(1800)), 1),
        (with(|f| f.newer_than = Some(1800)), 3),
        (with(|f| f.text = text("IT IS A")), 3),
        (with(|f| f.text = text("100%_' OR 1=1 -- ")), 0),
        (with(|f| f.text = text("")), 4),
    ]
}

#[tokio::test]
async fn groups_tell_how_many_and_how_old() {
    for world in worlds().await {
        world.park("a", 3, "too_large").await;
        world.park("b", 1, "invalid").await;
        world
            .sql("UPDATE TABLE SET last_error = 'message_id is empty; stored' WHERE message_id = 'a1'")
            .await;
        world
            .sql("UPDATE TABLE SET last_error = NULL WHERE message_id = 'b0'")
            .await;
        let groups = world.console.groups(&Filter::default()).await.unwrap();
        assert!(!groups.or_more);
        let mut found: Vec<(Option<&str>, u64)> = groups
            .groups
            .iter()
            .map(|group| (group.class.as_deref(), group.rows))
            .collect();
        found.sort_unstable();
        assert_eq!(
            found,
            [
                (None, 1),
                (Some("bad_message_id"), 1),
                (Some("too_large"), 2)
            ]
        );
        let oldest = groups.groups.iter().find(|g| g.rows == 2).unwrap();
        assert!(
            (2.0..60.0).contains(&oldest.oldest_age_seconds),
            "{oldest:?}"
        );
    }
}

#[tokio::test]
async fn a_detail_has_payload_attempts_and_life() {
    for world in worlds().await {
        let keys = world.park("m", 1, "too_large").await;
        let attempts = match world.console.table() {
            ops::Table::Outbox { .. } => "outbox_id, message_id",
            ops::Table::Inbox => "message_id",
        };
        for attempt in 1..=2 {
            let values = match world.console.table() {
                ops::Table::Outbox { .. } => format!("{}, 'm0'", keys[0]),
                ops::Table::Inbox => "'m0'".to_owned(),
            };
            world
                .sql(&format!(
                    "INSERT INTO TABLE_attempts ({attempts}, attempt, class, error) \
                     VALUES ({values}, {attempt}, 'too_large', 'too_large: no {attempt}')"
                ))
                .await;
        }
        world.console.note(&keys[0], &by("ann")).await.unwrap();
        let detail = world.console.detail(&keys[0]).await.unwrap().unwrap();
        assert_eq!(detail.payload.form, Form::Json);
        assert_eq!(detail.payload.text, "{\n  \"n\": 1\n}");
        assert_eq!(detail.attempts.len(), 2);
        let life: Vec<&str> = detail.life.iter().map(|m| m.what.as_str()).collect();
        let created = match world.console.table() {
            ops::Table::Outbox { .. } => "created",
            ops::Table::Inbox => "received",
        };
        assert_eq!(life, [created, "failed", "failed", "note"]);
        assert_eq!(detail.life[3].text, "ann says so");
        assert!(world.console.detail("999999").await.unwrap().is_none());
        assert!(world.console.detail("").await.unwrap().is_none());

        world
            .sql("UPDATE TABLE SET payload = REPEAT(X'FF', 100000)")
            .await;
        let detail = world.console.detail(&keys[0]).await.unwrap().unwrap();
        assert_eq!(
            (detail.payload.form, detail.payload.bytes),
            (Form::Hex, 100_000)
        );
        assert!(detail.payload.truncated && detail.payload.raw.is_none());
    }
}
