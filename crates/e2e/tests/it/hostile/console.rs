//! The operators' API and page under the same inputs, over rows whose every field is hostile.

use std::collections::HashMap;

use e2e::stage::{OPERATOR_TOKEN, Stage};
use serde_json::json;

use super::input::Hostile;
use super::wire::{Answer, Request};
use super::{clear, content_type, method};

const API: usize = 220;
const PAGE: usize = 220;
/// Parked rows that hold what an attacker got through the front door.
const ROWS: usize = 12;

/// A page's login: its cookie and the secret of its forms.
struct Login {
    cookie: String,
    csrf: String,
    origin: String,
}

/// Both consoles: no 5xx, nothing rendered raw, and no row changed that the audit does not tell of.
pub(super) async fn consoles(stage: &Stage, hostile: &mut Hostile) {
    park(stage, hostile).await;
    let before = [stored(stage, OUTBOX).await, stored(stage, INBOX).await];
    for admin in [&stage.relay.admin, &stage.pay.admin] {
        api(admin, hostile).await;
        page(admin, hostile).await;
    }
    for (table, before) in [OUTBOX, INBOX].into_iter().zip(before) {
        as_reported(stage, table, before).await;
    }
}

/// A table, its database, and its key as the audit has it.
type Table = (&'static str, &'static str, &'static str);
const OUTBOX: Table = ("outbox", "orders", "CAST(id AS CHAR)");
const INBOX: Table = ("inbox", "payments", "CONVERT(message_id USING utf8mb4)");

/// What a row is, by its key: a digest of what makes the message, and the number of its status.
type Stored = HashMap<String, (String, u8)>;

async fn stored(stage: &Stage, (table, database, key): Table) -> Stored {
    let rows: Vec<(String, String, u8)> = sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "SELECT {key}, SHA2(CONCAT_WS('|', HEX(message_id), HEX(event_type), HEX(aggregate_id), \
         HEX(exchange), HEX(routing_key), HEX(headers), HEX(payload)), 256), status \
         FROM {database}.{table} WHERE message_id LIKE '<xss>%'"
    )))
    .fetch_all(&stage.pool)
    .await
    .unwrap();
    let stored = rows.into_iter();
    stored
        .map(|(key, digest, status)| (key, (digest, status)))
        .collect()
}

/// Row by row: no message was changed, none is gone, and whatever became of one the same transaction
/// wrote down; and every message that goes on from one of them was written by an edit.
async fn as_reported(stage: &Stage, table: Table, before: Stored) {
    let (name, database, key) = table;
    assert_eq!(before.len(), ROWS);
    let after = stored(stage, table).await;
    let reported: Vec<(String, String)> = sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "SELECT target, CONVERT(action USING utf8mb4) FROM {database}.operator_actions ORDER BY id"
    )))
    .fetch_all(&stage.pool)
    .await
    .unwrap();
    let in_bulks: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(format!(
        "SELECT CONVERT(row_key USING utf8mb4) FROM {database}.{name}_bulk_rows"
    )))
    .fetch_all(&stage.pool)
    .await
    .unwrap();
    for (row, (digest, _)) in &before {
        let (now, status) = after
            .get(row)
            .unwrap_or_else(|| panic!("{name} {row} is gone"));
        assert_eq!(now, digest, "{name} {row} is another message");
        let acts: Vec<&str> = reported
            .iter()
            .filter(|(target, act)| target == row && act != "note" && act != "park")
            .map(|(_, act)| act.as_str())
            .collect();
        let last = acts.last().copied();
        let is_explained = match status {
            4 => matches!(last, Some("discard" | "edit")),
            3 => last.is_none_or(|act| act == "restore" || act == "retry"),
            _ => last == Some("retry") || in_bulks.contains(row),
        };
        assert!(
            is_explained || in_bulks.contains(row),
            "{name} {row} has status {status}, and was {acts:?}"
        );
    }
    let children: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(format!(
        "SELECT {key} FROM {database}.{name} WHERE headers LIKE '%\"parent\"%' \
         AND message_id NOT LIKE '<xss>%'"
    )))
    .fetch_all(&stage.pool)
    .await
    .unwrap();
    for child in &children {
        let edits = reported
            .iter()
            .filter(|(target, act)| target == child && act == "edit");
        assert_eq!(edits.count(), 1, "{name} {child} was written by nobody");
    }
    eprintln!(
        "{name}: {} actions reported, {} edited",
        reported.len(),
        children.len()
    );
}

async fn park(stage: &Stage, hostile: &mut Hostile) {
    for n in 0..ROWS {
        let cut = |text: String, max: usize| text.chars().take(max).collect::<String>();
        let ascii = |text: String| text.replace(|char: char| !char.is_ascii(), "?");
        sqlx::query(
            "INSERT INTO orders.outbox (message_id, aggregate_type, aggregate_id, event_type, exchange, \
             routing_key, content_type, headers, payload, status, attempts, last_error) \
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 3, 5, ?)",
        )
        .bind(format!("<xss>{n}"))
        .bind(cut(hostile.text(), 64))
        .bind(cut(hostile.text(), 128))
        .bind(cut(ascii(hostile.text()), 128))
        .bind(cut(ascii(hostile.text()), 127))
        .bind(cut(ascii(hostile.text()), 255))
        .bind(cut(ascii(hostile.text()), 64))
        .bind(json!({ hostile.text(): hostile.text() }).to_string())
        .bind(hostile.body(&json!({"a": 1})))
        .bind(cut(format!("<xss>{}", hostile.text()), 1_000))
        .execute(&stage.pool)
        .await
        .unwrap();
        sqlx::query(
            "INSERT INTO payments.inbox (message_id, event_type, aggregate_id, exchange, routing_key, \
             headers, payload, status, last_error) VALUES (?, ?, ?, ?, ?, ?, ?, 3, ?)",
        )
        .bind(format!("<xss>/../{n}?a=b&c#d"))
        .bind(cut(hostile.text(), 255))
        .bind(cut(hostile.text(), 255))
        .bind(cut(hostile.text(), 255))
        .bind(cut(hostile.text(), 255))
        .bind(json!({ hostile.text(): hostile.text() }).to_string())
        .bind(hostile.body(&json!({"a": 1})))
        .bind(cut(format!("<xss>{}", hostile.text()), 1_000))
        .execute(&stage.pool)
        .await
        .unwrap();
    }
}

fn joined(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// A key that some row has, or one that none can have.
fn key(hostile: &mut Hostile) -> Vec<u8> {
    match hostile.index(3) {
        0 => hostile.index(20).to_string().into_bytes(),
        1 => format!("%3Cxss%3E%2F..%2F{}%3Fa%3Db%26c%23d", hostile.index(ROWS)).into_bytes(),
        _ => hostile.in_url(),
    }
}

fn query(hostile: &mut Hostile) -> Vec<u8> {
    const NAMES: [&str; 16] = [
        "state",
        "class",
        "type",
        "exchange",
        "routing_key",
        "key",
        "message_id",
        "older_than",
        "newer_than",
        "text",
        "order",
        "limit",
        "after",
        "actor",
        "target",
        "before",
    ];
    let mut query = Vec::new();
    // One in three requests something that can be requested.
    if hostile.one_in(3) {
        return b"limit=7".to_vec();
    }
    for _ in 0..=hostile.index(3) {
        let name = NAMES[hostile.index(NAMES.len())];
        query.extend(joined(&[name.as_bytes(), b"=", &hostile.in_url(), b"&"]));
    }
    query
}

async fn api(admin: &str, hostile: &mut Hostile) {
    let mut done = 0;
    for _ in 0..API {
        let (key, query) = (key(hostile), query(hostile));
        let keys = json!([String::from_utf8_lossy(&key), hostile.text()]);
        let plan = json!({"filter": {"text": "none", "state": "parked"}, "canary": 1,
                          "canary_wait": 1, "rate": 1.0, "max": 5});
        let text = hostile.text();
        let verb = ["retry", "discard", "restore", "note", "edit"][hostile.index(5)];
        let one = json!({"reason": "why", "edit": {"payload": "{}"}});
        let request = match hostile.index(7) {
            0 => Request::new("GET", joined(&[b"/ops/api/rows?", &query])),
            1 => Request::new("GET", joined(&[b"/ops/api/groups?", &query])),
            2 => Request::new("GET", joined(&[b"/ops/api/actions?", &query])),
            3 => Request::new("GET", joined(&[b"/ops/api/rows/", &key])),
            4 => Request::new(method(hostile), joined(&[b"/ops/api/", &hostile.in_url()])),
            5 if hostile.one_in(2) => Request::new("POST", "/ops/api/bulks").body(
                content_type(hostile),
                hostile.body(&json!({"plan": plan, "reason": "why"})),
            ),
            5 => Request::new("POST", format!("/ops/api/{verb}").into_bytes()).body(
                content_type(hostile),
                hostile.body(&json!({"keys": keys, "reason": text})),
            ),
            _ => Request::new(
                "POST",
                joined(&[b"/ops/api/rows/", &key, b"/", verb.as_bytes()]),
            )
            .body(content_type(hostile), hostile.body(&one)),
        };
        let request = request.header("authorization", format!("Bearer {OPERATOR_TOKEN}"));
        let answer = clear(&request, admin).await;
        done += usize::from(answer.is_some_and(|answer| answer.status < 300));
    }
    eprintln!("{admin}: {done} of {API} calls were legal");
    assert!(
        done > 20,
        "hardly anything was legal: the inputs have gone stale"
    );
}

async fn page(admin: &str, hostile: &mut Hostile) {
    let login = log_in(admin).await;
    let mut shown = 0;
    for _ in 0..PAGE {
        let (key, query) = (key(hostile), query(hostile));
        let [reason, payload, headers] = [hostile.in_url(), hostile.in_url(), hostile.in_url()];
        let act = ["retry", "discard", "restore", "note", "edit", "burn"][hostile.index(6)];
        let request = match hostile.index(8) {
            0 => Request::new("GET", joined(&[b"/ops?", &query])),
            1 => Request::new("GET", joined(&[b"/ops/rows?", &query])),
            2 => Request::new("GET", joined(&[b"/ops/audit?", &query])),
            3 => Request::new("GET", joined(&[b"/ops/row?key=", &key])),
            4 => Request::new("GET", joined(&[b"/ops/bulk?", &query])),
            5 => Request::new(method(hostile), joined(&[b"/ops/", &hostile.in_url()])),
            6 => form(
                hostile,
                &login,
                joined(&[b"/ops/rows?", &query]),
                &[
                    ("act", act.into()),
                    ("row", key.clone()),
                    ("reason", reason),
                ],
            ),
            _ => form(
                hostile,
                &login,
                joined(&[b"/ops/row?key=", &key]),
                &[
                    ("act", act.into()),
                    ("reason", reason),
                    ("payload", payload),
                    ("headers", headers),
                ],
            ),
        };
        let request = request
            .header("cookie", &login.cookie)
            .header("origin", &login.origin);
        let Some(answer) = request.send(admin).await else {
            continue;
        };
        harmless(&request, &answer);
        shown += usize::from(answer.status == 200);
    }
    assert!(
        shown > 40,
        "hardly any page was shown: the inputs have gone stale"
    );
    // All that is parked, one after the other.
    let all = Request::new("GET", "/ops/rows?text=xss").header("cookie", &login.cookie);
    let list = all.send(admin).await.unwrap();
    harmless(&all, &list);
    assert!(list.body.contains("&#60;xss&#62;"), "{}", list.body);
}

fn form(
    hostile: &mut Hostile,
    login: &Login,
    target: Vec<u8>,
    fields: &[(&str, Vec<u8>)],
) -> Request {
    let csrf = if hostile.one_in(8) {
        "wrong"
    } else {
        &login.csrf
    };
    let mut body = format!("csrf={csrf}").into_bytes();
    for (name, value) in fields {
        body.extend(joined(&[b"&", name.as_bytes(), b"=", value]));
    }
    Request::new("POST", target).body("application/x-www-form-urlencoded", body)
}

/// A page, or a refusal; nothing of the input or of the rows is in it as it was.
fn harmless(request: &Request, answer: &Answer) {
    let context = || {
        format!(
            "{request}\n  answer {} {}\n{}",
            answer.status, answer.head, answer.body
        )
    };
    assert!((200..500).contains(&answer.status), "{}", context());
    for raw in ["<xss", "<script", "<img", "\u{202e}", "\u{1b}", "\0"] {
        assert!(
            !answer.body.contains(raw),
            "{raw:?} is raw in {}",
            context()
        );
    }
    for evil in [
        "\nx-evil:",
        "\nset-cookie: evil",
        "location: //",
        "location: http",
    ] {
        assert!(!answer.head.contains(evil), "{}", context());
    }
    if answer
        .header("content-type")
        .is_some_and(|kind| kind.starts_with("text/html"))
    {
        let policy = answer.header("content-security-policy").unwrap_or_default();
        assert!(policy.starts_with("default-src 'none'"), "{}", context());
        assert_eq!(
            answer.header("cache-control"),
            Some("no-store"),
            "{}",
            context()
        );
    }
}

async fn log_in(admin: &str) -> Login {
    let origin = admin.to_owned();
    let first = Request::new("GET", "/ops/login").send(admin).await.unwrap();
    let cookie = cookies(&first);
    let csrf = secret(&first.body);
    let sent = Request::new("POST", "/ops/login")
        .header("cookie", &cookie)
        .header("origin", &origin)
        .body(
            "application/x-www-form-urlencoded",
            format!("csrf={csrf}&token={OPERATOR_TOKEN}"),
        );
    let answer = sent.send(admin).await.unwrap();
    assert_eq!(answer.status, 303, "{answer:?}");
    let cookie = cookies(&answer);
    let page = Request::new("GET", "/ops")
        .header("cookie", &cookie)
        .send(admin)
        .await
        .unwrap();
    assert_eq!(page.status, 200, "{page:?}");
    Login {
        csrf: secret(&page.body),
        cookie,
        origin,
    }
}

/// All that were set, as a browser sends them back.
fn cookies(answer: &Answer) -> String {
    let set = answer
        .head
        .lines()
        .filter_map(|line| line.strip_prefix("set-cookie: "));
    let pairs: Vec<&str> = set.filter_map(|cookie| cookie.split(';').next()).collect();
    pairs.join("; ")
}

fn secret(page: &str) -> String {
    let from = page
        .split("name=\"csrf\" value=\"")
        .nth(1)
        .expect("a form has a secret");
    from.split('"').next().unwrap().to_owned()
}
