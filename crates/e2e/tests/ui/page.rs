//! The operators' page in a real browser, on real rows: log in, filter, open, retry, discard with a
//! reason, bulk with a canary, a conflict in words, a viewer without buttons, log out.

use std::{path::PathBuf, time::Duration};

use e2e::{
    Flavor,
    stage::{OPERATOR_TOKEN, Stage, VIEWER_TOKEN, client},
    wait,
};
use serde_json::json;
use sqlx::MySqlPool;

use crate::{browser::Browser, rows::park};

const SOON: Duration = Duration::from_secs(60);
/// Widths of the pictures, in CSS pixels, and whether they are dark.
const LOOKS: [(u32, bool); 3] = [(1280, false), (1280, true), (390, false)];

#[tokio::test]
async fn an_operator_works_on_the_outbox_and_the_inbox() {
    works(Flavor::MariaDb).await.unwrap();
}

#[tokio::test]
async fn and_so_on_mysql() {
    // Where there is no real MySQL, the shared one tells so loudly, or fails if it is required.
    if e2e::cache::mysql_root().is_ok() || e2e::shared::mysql().await.is_some() {
        works(Flavor::MySql).await.unwrap();
    }
}

async fn works(flavor: Flavor) -> anyhow::Result<()> {
    let stage = Stage::set_up(flavor).await?;
    park(&stage.pool).await;
    let browser = Browser::start().await?;
    let outbox = format!("{}/ops", stage.relay.admin);
    let inbox = format!("{}/ops", stage.pay.admin);

    logs_in(&browser, &outbox).await?;
    finds_groups_and_rows(&browser).await?;
    retries_and_sees_it_sent(&browser, &stage).await?;
    discards_and_restores(&browser, &outbox).await?;
    is_reported_of_a_conflict(&browser, &outbox).await?;
    acts_on_selected_rows(&browser, &outbox, &stage).await?;
    retries_in_bulk(&browser, &outbox, &stage).await?;
    holds_a_bulk_back(&browser, &outbox).await?;
    reads_the_audit(&browser, &outbox).await?;
    logs_out(&browser, &outbox).await?;
    a_viewer_only_looks(&browser, &outbox, &stage).await?;
    works_on_the_inbox(&browser, &inbox, &stage).await?;
    edits_and_sees_it_paid(&browser, &inbox, &stage).await?;
    browser.close().await?;
    Ok(())
}

/// Pictures of the page as it is, wide and narrow; nothing may stick out sideways.
async fn pictures(browser: &Browser, name: &str) -> anyhow::Result<()> {
    for (width, dark) in LOOKS {
        browser.look(width, dark).await?;
        let sideways = browser
            .run("return document.documentElement.scrollWidth - window.innerWidth")
            .await?;
        assert!(
            sideways.as_i64().unwrap() <= 0,
            "{name} is {sideways} px wider than {width}"
        );
        let dark = if dark { "-dark" } else { "" };
        let path = directory().join(format!("{name}-{width}{dark}.png"));
        browser.picture(path).await?;
    }
    browser.look(1280, false).await?;
    Ok(())
}

fn directory() -> PathBuf {
    let target = std::env::var_os("UI_PICTURES").map(PathBuf::from);
    let directory = target.unwrap_or_else(|| std::env::temp_dir().join("ui"));
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

async fn log_in(browser: &Browser, page: &str, token: &str) -> anyhow::Result<()> {
    browser.open(page).await?;
    browser.element("#token").await?.fill(token).await?;
    // Enter, as from a keyboard.
    browser.element("#token").await?.type_in("\u{e007}").await?;
    Ok(())
}

async fn logs_in(browser: &Browser, outbox: &str) -> anyhow::Result<()> {
    browser.look(1280, false).await?;
    browser.open(&format!("{outbox}/rows?class=nack")).await?;
    browser.shows("Your token").await?;
    pictures(browser, "login").await?;
    log_in(browser, &format!("{outbox}/rows?class=nack"), "wrong").await?;
    browser.shows("This token is not known").await?;
    log_in(
        browser,
        &format!("{outbox}/rows?class=nack"),
        OPERATOR_TOKEN,
    )
    .await?;
    browser.shows("ann, operator").await?;
    // To where the person wanted to go.
    assert!(browser.address().await?.ends_with("/ops/rows?class=nack"));
    let cookies = browser.cookies().await?;
    let session = &cookies[0];
    assert_eq!(session["httpOnly"], true, "{cookies}");
    assert_eq!(session["sameSite"], "Strict", "{cookies}");
    assert_eq!(session["path"], "/ops", "{cookies}");
    Ok(())
}

async fn finds_groups_and_rows(browser: &Browser) -> anyhow::Result<()> {
    browser.control("Overview").await?.click().await?;
    browser.shows("25 rows parked").await?;
    for class in ["too_large", "nack", "invalid", "held"] {
        browser.shows(class).await?;
    }
    pictures(browser, "overview").await?;
    browser.element("#class").await?.fill("invalid").await?;
    browser.control("Filter").await?.click().await?;
    browser.shows("2 rows parked").await?;
    browser.control("Show all rows").await?.click().await?;
    browser.shows("order-3-1").await?;
    // The failure's text holds HTML, a control character and a reversed reading order: as text.
    browser
        .shows("<script>document.title='owned'</script><xss>[U+202E][U+001B][31m")
        .await?;
    assert!(browser.all("xss").await?.is_empty());
    browser.control("Clear").await?.click().await?;
    browser.shows("order-1-0").await?;
    pictures(browser, "rows").await?;
    Ok(())
}

/// The message ids of one key's rows.
async fn row_of(pool: &MySqlPool, key: &str) -> (u64, String) {
    sqlx::query_as("SELECT id, message_id FROM orders.outbox WHERE aggregate_id = ?")
        .bind(key)
        .fetch_one(pool)
        .await
        .unwrap()
}

async fn retries_and_sees_it_sent(browser: &Browser, stage: &Stage) -> anyhow::Result<()> {
    let (id, message_id) = row_of(&stage.pool, "order-2-0").await;
    let page = format!("{}/ops/row?key={id}", stage.relay.admin);
    browser.open(&page).await?;
    browser.shows("Its whole life").await?;
    browser.shows("\"amount_minor\": 1999").await?;
    browser.shows("the broker refused it").await?;
    pictures(browser, "row").await?;
    browser.control("Retry now").await?.click().await?;
    browser
        .shows(&format!("Row {id} is tried again now."))
        .await?;
    wait::until("the message to be paid for", SOON, async || {
        let paid: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM payments.inbox WHERE message_id = ? AND status = 2",
        )
        .bind(&message_id)
        .fetch_one(&stage.pool)
        .await
        .unwrap();
        paid == 1
    })
    .await;
    // Marks are collected for a moment, and the page is as it was when it was opened.
    wait::until("its mark", SOON, async || {
        let status: u8 = sqlx::query_scalar("SELECT status FROM orders.outbox WHERE id = ?")
            .bind(id)
            .fetch_one(&stage.pool)
            .await
            .unwrap();
        status == 2
    })
    .await;
    browser.open(&page).await?;
    browser.shows("sent").await?;
    assert!(
        !browser.offers("Retry now").await?,
        "what is sent can't be retried"
    );
    Ok(())
}

async fn discards_and_restores(browser: &Browser, outbox: &str) -> anyhow::Result<()> {
    browser
        .open(&format!("{outbox}/rows?class=too_large"))
        .await?;
    browser.element("tbody a").await?.click().await?;
    // A browser lets nobody discard without a reason.
    browser.control("Discard").await?.click().await?;
    assert!(browser.offers("Discard").await?);
    let reason = "sold out; the customer knows";
    browser
        .element("#discard-reason")
        .await?
        .fill(reason)
        .await?;
    browser.control("Discard").await?.click().await?;
    browser.shows("is discarded. It can be restored.").await?;
    browser.shows(reason).await?;
    browser.control("Restore").await?.click().await?;
    browser.shows("is parked again.").await?;
    browser
        .element("#note")
        .await?
        .fill("call the warehouse")
        .await?;
    browser.control("Write the note").await?.click().await?;
    browser.shows("call the warehouse").await?;
    Ok(())
}

async fn is_reported_of_a_conflict(browser: &Browser, outbox: &str) -> anyhow::Result<()> {
    browser
        .open(&format!("{outbox}/rows?class=too_large"))
        .await?;
    browser.element("tbody a").await?.click().await?;
    browser.shows("Retry now").await?;
    let page = browser.address().await?;
    let key = page.split("key=").nth(1).unwrap();
    // Somebody else is faster.
    let answer = client()?
        .post(format!("{outbox}/api/rows/{key}/discard"))
        .bearer_auth(OPERATOR_TOKEN)
        .json(&json!({"reason": "too large for good"}))
        .send()
        .await?;
    assert_eq!(answer.status(), 200, "{}", answer.text().await?);
    browser.control("Retry now").await?.click().await?;
    browser.shows("Not done: row").await?;
    browser.shows("is discarded now").await?;
    browser.shows("ann did “discard”").await?;
    pictures(browser, "conflict").await?;
    Ok(())
}

async fn acts_on_selected_rows(
    browser: &Browser,
    outbox: &str,
    stage: &Stage,
) -> anyhow::Result<()> {
    browser
        .open(&format!("{outbox}/rows?class=invalid"))
        .await?;
    browser.control("Discard selected").await?.click().await?;
    browser.shows("No row was selected").await?;
    for checkbox in browser.all("tbody input").await? {
        // The space bar, as from a keyboard.
        checkbox.type_in(" ").await?;
    }
    browser
        .element("#reason")
        .await?
        .fill("can never be sent")
        .await?;
    browser.control("Discard selected").await?.click().await?;
    browser.shows("2 rows are discarded.").await?;
    browser.shows("No parked row matches").await?;
    let discarded: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM orders.outbox WHERE status = 4 AND aggregate_id LIKE 'order-3-%'",
    )
    .fetch_one(&stage.pool)
    .await?;
    assert_eq!(discarded, 2);
    Ok(())
}

async fn start_bulk(
    browser: &Browser,
    outbox: &str,
    class: &str,
    canary: (&str, &str),
) -> anyhow::Result<()> {
    browser.open(&format!("{outbox}?class={class}")).await?;
    browser.control("Retry all…").await?.click().await?;
    browser.shows("It will touch").await?;
    browser.element("#canary").await?.fill(canary.0).await?;
    browser
        .element("#canary_wait")
        .await?
        .fill(canary.1)
        .await?;
    browser.element("#rate").await?.fill("5").await?;
    browser
        .element("#reason")
        .await?
        .fill("the broker is well again")
        .await?;
    Ok(())
}

async fn retries_in_bulk(browser: &Browser, outbox: &str, stage: &Stage) -> anyhow::Result<()> {
    start_bulk(browser, outbox, "nack", ("2", "3")).await?;
    pictures(browser, "bulk-plan").await?;
    browser.control("Retry 11 rows").await?.click().await?;
    browser.shows("has begun").await?;
    browser.shows("of 11 settled").await?;
    pictures(browser, "bulk").await?;
    // The page loads itself again until all is done.
    browser.shows("11 of 11 settled").await?;
    let sent: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM orders.outbox WHERE status = 2 AND aggregate_id LIKE 'order-2-%'",
    )
    .fetch_one(&stage.pool)
    .await?;
    assert_eq!(sent, 12);
    Ok(())
}

async fn holds_a_bulk_back(browser: &Browser, outbox: &str) -> anyhow::Result<()> {
    start_bulk(browser, outbox, "held", ("0", "3600")).await?;
    browser.element("#rate").await?.fill("0.01").await?;
    browser.element("#canary").await?.fill("1").await?;
    browser.control("Retry 8 rows").await?.click().await?;
    browser.shows("of 8 settled").await?;
    browser.control("Pause").await?.click().await?;
    browser.shows("is paused").await?;
    browser.control("Resume").await?.click().await?;
    browser.shows("goes on").await?;
    browser.control("Cancel").await?.click().await?;
    browser.shows("is cancelled").await?;
    assert!(!browser.offers("Pause").await?);
    browser.control("Bulk retries").await?.click().await?;
    browser.shows("cancelled").await?;
    pictures(browser, "bulks").await?;
    Ok(())
}

async fn reads_the_audit(browser: &Browser, outbox: &str) -> anyhow::Result<()> {
    browser.control("Audit").await?.click().await?;
    browser.shows("sold out; the customer knows").await?;
    pictures(browser, "audit").await?;
    let cookies = browser.cookies().await?;
    let cookie = format!(
        "{}={}",
        cookies[0]["name"].as_str().unwrap(),
        cookies[0]["value"].as_str().unwrap()
    );
    let file = client()?
        .get(format!("{outbox}/audit.csv?action=discard"))
        .header("cookie", cookie)
        .send()
        .await?;
    assert!(
        file.headers()["content-disposition"]
            .to_str()
            .unwrap()
            .starts_with("attachment")
    );
    let file = file.text().await?;
    assert!(file.contains("sold out; the customer knows"), "{file}");
    assert!(!file.contains(",bulk_start,"), "{file}");
    Ok(())
}

async fn logs_out(browser: &Browser, outbox: &str) -> anyhow::Result<()> {
    browser.control("Log out").await?.click().await?;
    browser.shows("Your token").await?;
    browser.open(outbox).await?;
    browser.shows("Your token").await?;
    Ok(())
}

async fn a_viewer_only_looks(browser: &Browser, outbox: &str, stage: &Stage) -> anyhow::Result<()> {
    log_in(browser, &format!("{outbox}/rows?class=held"), VIEWER_TOKEN).await?;
    browser.shows("bob, viewer").await?;
    for control in [
        "Retry selected now",
        "Discard selected",
        "Retry all that match…",
    ] {
        assert!(!browser.offers(control).await?, "{control}");
    }
    assert!(browser.all("input[type=checkbox]").await?.is_empty());
    browser.element("tbody a").await?.click().await?;
    browser.shows("Its whole life").await?;
    for control in ["Retry now", "Discard", "Write the note"] {
        assert!(!browser.offers(control).await?, "{control}");
    }
    pictures(browser, "viewer").await?;
    // The form that an operator's page would have had, put together by hand: its secret is in the
    // viewer's own form for the log-out.
    let count = "SELECT COUNT(*) FROM orders.outbox WHERE status = 4";
    let before: i64 = sqlx::query_scalar(count).fetch_one(&stage.pool).await?;
    browser
        .run(
            "const form = document.createElement('form');
             form.method = 'post';
             form.action = location.href;
             const csrf = document.querySelector('input[name=csrf]').value;
             for (const [name, value] of [['csrf', csrf], ['act', 'discard'], ['reason', 'mine']]) {
               const field = document.createElement('input');
               field.name = name;
               field.value = value;
               form.append(field);
             }
             document.body.append(form);
             form.submit()",
        )
        .await?;
    browser.shows("You are logged in as a viewer").await?;
    let after: i64 = sqlx::query_scalar(count).fetch_one(&stage.pool).await?;
    assert_eq!(before, after);
    browser.control("Log out").await?.click().await?;
    browser.shows("Your token").await?;
    Ok(())
}

async fn edits_and_sees_it_paid(
    browser: &Browser,
    inbox: &str,
    stage: &Stage,
) -> anyhow::Result<()> {
    let message = json!({"message_id": "broken-1", "type": "order.placed.v1",
                         "payload": {"order_id": "none"}});
    let answer = client()?
        .post(format!("{}/pay", stage.pay.url))
        .bearer_auth(OPERATOR_TOKEN)
        .json(&message)
        .send()
        .await?;
    assert_eq!(answer.status(), 202);
    wait::until("the message to be parked", SOON, async || {
        let parked: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM payments.inbox WHERE status = 3 AND message_id = 'broken-1'",
        )
        .fetch_one(&stage.pool)
        .await
        .unwrap();
        parked == 1
    })
    .await;
    browser.open(&format!("{inbox}/row?key=broken-1")).await?;
    browser.element("summary").await?.click().await?;
    let order = uuid::Uuid::now_v7().to_string();
    let payload = json!({"order_id": order, "customer_id": "c-1", "amount_minor": 1999,
                         "currency": "EUR", "placed_at": "2026-01-01T00:00:00.000000Z"});
    browser
        .element("#edit-payload")
        .await?
        .fill(&payload.to_string())
        .await?;
    browser
        .element("#edit-reason")
        .await?
        .fill("the order's id was missing")
        .await?;
    pictures(browser, "edit").await?;
    browser
        .control("Send as a new message")
        .await?
        .click()
        .await?;
    wait::until("the order to be paid", SOON, async || {
        let paid: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM payments.payments WHERE order_id = ?")
                .bind(&order)
                .fetch_one(&stage.pool)
                .await
                .unwrap();
        paid == 1
    })
    .await;
    browser.open(&format!("{inbox}/row?key=broken-1")).await?;
    browser.shows("discarded").await?;
    browser.shows("the order's id was missing").await?;
    let parents: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM payments.inbox WHERE headers LIKE '%\"parent\"%broken-1%'",
    )
    .fetch_one(&stage.pool)
    .await?;
    assert_eq!(parents, 1);
    Ok(())
}

async fn works_on_the_inbox(browser: &Browser, inbox: &str, stage: &Stage) -> anyhow::Result<()> {
    // The relay's login is none of pay-svc's, though both are on one host.
    log_in(browser, inbox, OPERATOR_TOKEN).await?;
    browser.shows("ann, operator").await?;
    let message = json!({"message_id": "by/hand 1?".replace(' ', "-"), "type": "refund.requested.v9",
                         "payload": {"order_id": "none"}});
    let answer = client()?
        .post(format!("{}/pay", stage.pay.url))
        .bearer_auth(OPERATOR_TOKEN)
        .json(&message)
        .send()
        .await?;
    assert_eq!(answer.status(), 202);
    wait::until("the message to be parked", SOON, async || {
        let parked: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM payments.inbox WHERE status = 3 AND message_id = 'by/hand-1?'",
        )
        .fetch_one(&stage.pool)
        .await
        .unwrap();
        parked == 1
    })
    .await;
    browser
        .open(&format!("{inbox}?type=refund.requested.v9"))
        .await?;
    browser.shows("1 row parked").await?;
    pictures(browser, "inbox").await?;
    browser.control("Show all rows").await?.click().await?;
    browser.element("tbody a").await?.click().await?;
    browser.shows("refund.requested.v9").await?;
    pictures(browser, "inbox-row").await?;
    browser
        .element("#discard-reason")
        .await?
        .fill("no refunds here")
        .await?;
    browser.control("Discard").await?.click().await?;
    browser.shows("is discarded. It can be restored.").await?;
    Ok(())
}
