//! The examples of docs/writing-events.md and README's INSERT, each as it stands there, through a relay to a queue.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use e2e::product::{self, Process};
use e2e::{Db, Management, Vhost, port, shared, wait};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, MySqlConnection};

const PAGE: &str = include_str!("../../../../docs/writing-events.md");
const README: &str = include_str!("../../../../README.md");
const PASSWORD: &str = "examples";
const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn every_example_of_the_page_on_writing_events_writes_events_that_arrive() {
    for db in shared::databases().await {
        through_a_relay(db).await;
    }
}

async fn through_a_relay(db: &Db) {
    let database = db.create_database().await.unwrap();
    let user = database.name[..26].to_owned();
    // UPDATE is what SELECT … FOR UPDATE requests.
    let rights = format!("SELECT, INSERT, UPDATE ON `{}`.*", database.name);
    db.create_user(&user, PASSWORD, &[rights]).await.unwrap();
    migrate(&database.url).await;

    let vhost = queue_for_all().await;
    let management = shared::rabbit().await.management().unwrap();
    let admin = format!("127.0.0.1:{}", port::free().unwrap());
    let env = [
        ("DATABASE_URL", database.url.as_str()),
        ("AMQP_URL", &vhost.amqp_url),
        ("ADMIN_ADDR", &admin),
    ];
    let relay = Process::spawn(&product::binary("relay").unwrap(), &["run"], &env).unwrap();

    let mut connection = MySqlConnection::connect(&db.user_url(&user, PASSWORD, &database.name))
        .await
        .unwrap();
    let insert = blocks(README, "sql").swap_remove(0);
    for sql in blocks(PAGE, "sql").into_iter().chain([insert]) {
        connection
            .execute(sqlx::raw_sql(AssertSqlSafe(sql)))
            .await
            .unwrap();
    }
    let port = db.port().to_string();
    let env = [
        ("MYSQL_HOST", "127.0.0.1"),
        ("MYSQL_PORT", &port),
        ("MYSQL_USER", &user),
        ("MYSQL_PASSWORD", PASSWORD),
        ("MYSQL_DATABASE", &database.name),
    ];
    for (language, program) in [("python", "/usr/bin/python3"), ("php", "/usr/bin/php")] {
        for script in blocks(PAGE, language) {
            run(program, &script, &env);
        }
    }

    wait::until("the four examples to arrive", SOON, async || {
        let queue = management.queue(&vhost.name, "all").await.unwrap();
        queue.is_some_and(|queue| queue.total == 4)
    })
    .await;
    let notes = notes(&management, &vhost).await;
    let names: Vec<&str> = notes.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        ["README", "php", "plain SQL", "python"],
        "{}",
        relay.log()
    );
    let noted = notes.values().filter(|kind| **kind == "order.noted.v1");
    assert_eq!(noted.count(), 3);
    let delayed: (u8, i64, String) = sqlx::query_as(
        "SELECT status, TIMESTAMPDIFF(MINUTE, UTC_TIMESTAMP(6), next_attempt_at), headers \
         FROM outbox WHERE aggregate_type = 'reminder'",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    assert_eq!((delayed.0, delayed.1), (1, 59), "it is to wait for an hour");
    assert!(delayed.2.contains("traceparent"));
}

/// A virtual host whose queue "all" takes whatever comes to the exchange.
async fn queue_for_all() -> Vhost {
    let rabbit = shared::rabbit().await;
    let vhost = rabbit.create_vhost().await.unwrap();
    let management = rabbit.management().unwrap();
    let topic = json!({"type": "topic", "durable": true});
    let exchange = format!("exchanges/{}/order-exchange", vhost.name);
    management.put(&exchange, &topic).await.unwrap();
    let classic = json!({});
    management
        .declare_queue(&vhost.name, "all", classic)
        .await
        .unwrap();
    management
        .bind(&vhost.name, "order-exchange", "all", "#")
        .await
        .unwrap();
    vhost
}

/// What arrived: the note in each body, and the message's type.
async fn notes(management: &Management, vhost: &Vhost) -> BTreeMap<String, Value> {
    let get = json!({"count": 10, "ackmode": "ack_requeue_false", "encoding": "auto"});
    let path = format!("queues/{}/all/get", vhost.name);
    let arrived = management.post(&path, &get).await.unwrap();
    arrived
        .as_array()
        .unwrap()
        .iter()
        .map(|message| {
            let body: Value = serde_json::from_str(message["payload"].as_str().unwrap()).unwrap();
            let note = body["note"].as_str().unwrap_or("README").to_owned();
            (note, message["properties"]["type"].clone())
        })
        .collect()
}

async fn migrate(url: &str) {
    let program = product::binary("order-svc").unwrap();
    let migration = Process::spawn(&program, &["migrate"], &[("DATABASE_URL", url)]).unwrap();
    let status = migration.wait_exit(SOON).await.unwrap();
    assert!(status.success(), "{}", migration.log());
}

/// A page's code blocks in a language; at least one.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    let blocks: Vec<String> = page
        .split(&fence)
        .skip(1)
        .map(|rest| rest.split("\n```").next().unwrap().to_owned())
        .collect();
    assert!(!blocks.is_empty(), "{language}");
    blocks
}

fn run(program: &str, script: &str, env: &[(&str, &str)]) {
    let mut child = Command::new(program)
        .envs(env.iter().copied())
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap_or_else(|err| panic!("{program}: {err}; `make test` installs it"));
    child
        .stdin
        .take()
        .unwrap()
        .write_all(script.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let reported = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {reported}\n{script}");
}
