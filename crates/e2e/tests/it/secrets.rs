//! No setting that holds a secret is ever shown: whatever is wrong with it, in whatever order its parts
//! are, as a value, as a flag, and where the secret was written in place of its file's path.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::process::Command;
use std::time::Duration;

use e2e::product::{self, Process};
use e2e::wait::until;

/// What must not be seen, in capitals or not; `{}` stands for it in the tables below.
const SECRET: &str = "Hunter2Hunter2x7";

/// A setting that holds a secret: who reads it, its flag, and values that are wrong.
struct Secret {
    name: &'static str,
    flag: &'static str,
    readers: &'static [&'static [&'static str]],
    wrong: &'static [&'static str],
    /// There is `NAME_FILE` as well.
    has_file: bool,
}

const RUN: &[&[&str]] = &[
    &["pay-svc", "run"],
    &["relay", "run"],
    &["relay", "check"],
    &["order-svc", "run"],
];

const SECRETS: [Secret; 6] = [
    Secret {
        name: "DATABASE_URL",
        flag: "--database-url",
        readers: &[
            &["relay", "run"],
            &["relay", "check"],
            &["relay", "status"],
            &["relay", "migrate"],
            &["relay", "parked", "list"],
            &["order-svc", "run"],
            &["order-svc", "migrate"],
            &["pay-svc", "run"],
            &["pay-svc", "migrate"],
        ],
        wrong: WRONG_DATABASES,
        has_file: true,
    },
    Secret {
        name: "RELAY_AUDIT_INBOX_URL",
        flag: "--inbox",
        readers: &[&["relay", "audit"]],
        wrong: WRONG_DATABASES,
        has_file: true,
    },
    Secret {
        name: "AMQP_URL",
        flag: "--amqp-url",
        readers: RUN.split_at(3).0,
        wrong: &[
            "{}",
            "{}:u@h/v",
            "u:{}@h/v",
            "{}://u:p@h/v",
            "http://u:{}@h/v",
            "{}:amqp://u@h/v",
            "amqp://u:{}@h:port/v",
            "amqp://h:5672@u:{}/v",
            "amqp://u:{}@[h/v",
            "amqp://u:x@y/{}@h/v",
            "amqp://u:x@y/?{}@h/v",
            "amqp://u:p@h/v?heartbeat={}",
            "amqp://u:p@h/v?auth_mechanism={}",
            "amqp://u:p@a/v,amqp://u:{}@b/v",
        ],
        has_file: true,
    },
    Secret {
        name: "OPS_TOKENS",
        flag: "--ops-tokens",
        readers: RUN,
        wrong: &[
            "{}",
            "ann:{}",
            "{}:ann",
            "ann:{}:operator",
            "operator:{}:ann",
            "operator:ann:{}",
            "{}:ann:operator",
            "{}:operator:ann",
            "ann:root:{}",
            ":operator:{}",
            "ann operator {}",
            "ann:operator:{}\nbob:viewer:fedcba9876543210",
            "ann:operator:{},bob:viewer:{}",
            "ann:operator:{},ann:viewer:fedcba9876543210",
            "ann:operator:fedcba9876543210,{}",
        ],
        has_file: true,
    },
    Secret {
        name: "PAY_PROVIDER_TOKEN",
        flag: "--provider-token",
        readers: RUN.split_at(1).0,
        wrong: &["{}\n{}", "{}\u{1}"],
        has_file: true,
    },
    Secret {
        name: "PAY_PROVIDER_URL",
        flag: "--provider-url",
        readers: RUN.split_at(1).0,
        wrong: &[
            "{}",
            "ftp://{}/charges",
            "https://u:{}@provider/charges",
            "https://{}@provider/charges",
            "https:///{}",
        ],
        has_file: false,
    },
];

const WRONG_DATABASES: &[&str] = &[
    "{}",
    "{}:u@h/d",
    "u:{}@h/d",
    "{}://u:p@h/d",
    "postgres://u:{}@h/d",
    "{}:mysql://u@h/d",
    "mysql://{}",
    "mysql://u:{}@h",
    "mysql://:{}@h/d",
    "mysql://u:{}@h:port/d",
    "mysql://h:3306@u:{}/d",
    "mysql://u:{}@[h/d",
    "mysql://u:%FF{}@h/d",
    "mysql://u:{}@h/%FF",
    "mysql://u:x@y/{}@h",
    "mysql://u:x@y/z?{}@h/d",
    "mysql://u:p@h/d?{}",
    "mysql://u:p@h/d?ssl-mode={}",
    "mysql://u:p@h/d?ssl-mode=VERIFY_IDENTITY&ssl-ca={}",
];

/// Runs a program to its end, with these settings over ones that no parser refuses.
fn run(words: &[&str], env: &[(&str, &OsStr)]) -> (Option<i32>, String) {
    let (program, args) = words.split_first().unwrap();
    let mut command = Command::new(product::binary(program).unwrap());
    command.args(args).env_clear();
    command.env("DATABASE_URL", "mysql://u:p@127.0.0.1:9/d");
    command.env("AMQP_URL", "amqps://u:p@127.0.0.1:9/v");
    command.env("RUST_LOG", "trace").env("RUST_BACKTRACE", "1");
    if env.iter().any(|(name, _)| name.starts_with("PAY_PROVIDER")) {
        command.env("PAY_PROVIDER", "http");
        command.env("PAY_PROVIDER_URL", "https://provider/charges");
    }
    for (name, value) in env {
        if let Some(given) = name.strip_suffix("_FILE") {
            command.env_remove(given);
        }
        command.env(name, value);
    }
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let code = output.status.code();
    (code, String::from_utf8_lossy(&text).into_owned())
}

#[track_caller]
fn hidden(what: &str, said: &str) {
    let seen = said.to_lowercase().contains(&SECRET.to_lowercase());
    assert!(!seen, "{what}: {said}");
    assert!(!said.contains("panicked"), "{what}: {said}");
}

/// Ends with 64; one line names the setting, the problem and the fix, and none the secret.
#[track_caller]
fn refused(words: &[&str], setting: &str, env: &[(&str, &OsStr)]) {
    let (code, said) = run(words, env);
    let what = format!("{words:?} {env:?}");
    hidden(&what, &said);
    assert_eq!(code, Some(64), "{what}: {said}");
    let named = format!("{}: {setting}: ", words[0]);
    let line = said.lines().find(|line| line.starts_with(&named));
    let is_whole = line.is_some_and(|line| line.contains("; "));
    assert!(is_whole, "{what} does not say {named}: {said}");
}

#[test]
fn a_wrong_secret_is_refused_and_not_shown() {
    for secret in &SECRETS {
        for words in secret.readers {
            for wrong in secret.wrong {
                let value = wrong.replace("{}", SECRET);
                refused(words, secret.name, &[(secret.name, OsStr::new(&value))]);
            }
        }
    }
}

#[test]
fn a_wrong_secret_in_a_file_or_a_flag_is_refused_and_not_shown() {
    for secret in &SECRETS {
        let words = secret.readers[0];
        let file = tempfile::NamedTempFile::new().unwrap();
        let by_file = format!("{}_FILE", secret.name);
        for wrong in secret.wrong {
            let value = wrong.replace("{}", SECRET);
            let flagged = [words, &[secret.flag, &value]].concat();
            // What the flag says goes before the environment.
            refused(&flagged, secret.name, &[(secret.name, OsStr::new("x"))]);
            if secret.has_file {
                std::fs::write(file.path(), &value).unwrap();
                let path = file.path().as_os_str();
                refused(words, secret.name, &[(&by_file, path)]);
            }
        }
    }
}

#[test]
fn a_secret_in_place_of_its_files_path_is_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty");
    std::fs::write(&empty, "\n").unwrap();
    let binary = dir.path().join("binary");
    std::fs::write(&binary, [b"\xff", SECRET.as_bytes()].concat()).unwrap();
    for secret in SECRETS.iter().filter(|secret| secret.has_file) {
        let setting = format!("{}_FILE", secret.name);
        let mut paths = vec![empty.clone(), binary.clone(), dir.path().to_owned()];
        let pasted = [
            "{}",
            "/{}",
            "/etc/hosts/{}",
            "mysql://u:{}@h/d",
            "ann:operator:{}",
        ];
        paths.extend(pasted.map(|pasted| pasted.replace("{}", SECRET).into()));
        for words in secret.readers {
            for path in &paths {
                refused(words, &setting, &[(&setting, path.as_os_str())]);
            }
        }
        let both = [
            (secret.name, OsStr::new(SECRET)),
            (&setting, OsStr::new(SECRET)),
        ];
        let (code, said) = run(secret.readers[0], &both);
        hidden(&setting, &said);
        assert_eq!(code, Some(64), "{said}");
    }
    let pasted = format!("-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----");
    for path in [OsStr::new(SECRET), OsStr::new(&pasted), binary.as_os_str()] {
        for words in RUN.split_at(3).0 {
            refused(words, "AMQP_KEY_FILE", &[("AMQP_KEY_FILE", path)]);
        }
    }
}

#[test]
fn what_is_not_text_is_refused_by_the_name_of_its_setting() {
    let value = [b"\xff", SECRET.as_bytes()].concat();
    for secret in &SECRETS {
        for words in secret.readers {
            let env = [(secret.name, OsStr::from_bytes(&value))];
            refused(words, secret.name, &env);
        }
    }
}

#[test]
fn help_and_usage_errors_show_no_secret() {
    let names = SECRETS.iter().flat_map(|secret| {
        let file = secret.has_file.then(|| format!("{}_FILE", secret.name));
        [secret.name.to_owned()].into_iter().chain(file)
    });
    let names: Vec<String> = names.chain(["AMQP_KEY_FILE".to_owned()]).collect();
    let env: Vec<_> = names
        .iter()
        .map(|name| (name.as_str(), OsStr::new(SECRET)))
        .collect();
    let list = format!("ann:operator:{SECRET}");
    let url = format!("mysql://u:{SECRET}@h/d");
    let readers = SECRETS.iter().flat_map(|secret| secret.readers);
    for words in readers {
        let (code, said) = run(&[words, &["--help"][..]].concat(), &env);
        hidden(&format!("{words:?} --help"), &said);
        assert_eq!(code, Some(0), "{said}");
        for wrong in [
            &[url.as_str()][..],
            &[&list],
            &["--database-url", "two", SECRET],
            &["--database-url", SECRET, "--database-url", SECRET],
            &["--no-such-setting", SECRET],
            &[&format!("--no-such-setting={SECRET}")],
            &["--log-format", &url],
            &["--log-format", &list],
        ] {
            let (code, said) = run(&[words, wrong].concat(), &env);
            hidden(&format!("{words:?} {wrong:?}"), &said);
            assert_eq!(code, Some(64), "{said}");
        }
    }
}

/// Until a program has said what it waits for, or has ended.
const SOON: Duration = Duration::from_secs(30);

fn start(words: &[&str], env: &[(&str, &str)]) -> Process {
    let program = product::binary(words[0]).unwrap();
    let listen = [
        ("LISTEN_ADDR", "127.0.0.1:0"),
        ("ADMIN_ADDR", "127.0.0.1:0"),
    ];
    Process::spawn(&program, &words[1..], &[&listen, env].concat()).unwrap()
}

#[tokio::test]
async fn a_password_where_the_user_belongs_is_not_shown_when_the_login_is_refused() {
    let rabbit = e2e::shared::rabbit().await;
    let vhost = rabbit.create_vhost().await.unwrap();
    let broker = rabbit.user_url(SECRET, "admin", &vhost.name);
    for db in e2e::shared::databases().await {
        let good = db.create_database().await.unwrap();
        let swapped = db.user_url(SECRET, "admin", &good.name);
        for words in SECRETS[0].readers {
            let env = [("DATABASE_URL", OsStr::new(&swapped))];
            let (code, said) = run(words, &env);
            hidden(&format!("{words:?}"), &said);
            assert_ne!(code, Some(0), "{words:?}: {said}");
            assert!(said.contains("Access denied"), "{words:?}: {said}");
        }
        let inbox = [
            ("DATABASE_URL", OsStr::new(&good.url)),
            ("RELAY_AUDIT_INBOX_URL", OsStr::new(&swapped)),
        ];
        let (_, said) = run(&["relay", "audit"], &inbox);
        hidden("audit", &said);
        assert!(said.contains("Access denied"), "{said}");
        let env = [("DATABASE_URL", good.url.as_str()), ("AMQP_URL", &broker)];
        let pay = start(&["pay-svc", "run"], &env);
        let ended = pay.wait_exit(SOON).await.unwrap();
        hidden("pay-svc", &pay.log());
        assert_eq!(ended.code(), Some(64), "{}", pay.log());
    }
}

#[tokio::test]
async fn a_password_where_the_user_belongs_is_not_shown_while_servers_are_waited_for() {
    let port = e2e::port::free().unwrap();
    let database = format!("mysql://{SECRET}:u@127.0.0.1:{port}/d");
    let broker = format!("amqp://{SECRET}:u@127.0.0.1:{port}/v");
    let env = [("DATABASE_URL", database.as_str()), ("AMQP_URL", &broker)];
    for (words, awaited) in [
        (["relay", "run"], ["the database", "the database"]),
        (["order-svc", "run"], ["the database", "the database"]),
        (["pay-svc", "run"], ["the database", "the broker"]),
    ] {
        let process = start(&words, &env);
        for what in awaited {
            let what = format!("waiting for {what}");
            until(&what, SOON, async || process.log().contains(&what)).await;
        }
        process.terminate().unwrap();
        process.wait_exit(SOON).await.unwrap();
        hidden(words[0], &process.log());
    }
}

/// lapin writes each frame at the level trace: the login, and every payload.
#[tokio::test]
async fn logs_at_every_level_show_neither_password_nor_payload() {
    let rabbit = e2e::shared::rabbit().await;
    let vhost = rabbit.create_vhost().await.unwrap();
    let management = rabbit.management().unwrap();
    management.create_user("hidden", SECRET, "").await.unwrap();
    let all = management.set_permissions(&vhost.name, "hidden", [".*"; 3]);
    all.await.unwrap();
    let broker = rabbit.user_url("hidden", SECRET, &vhost.name);
    for db in e2e::shared::databases().await {
        let orders = db.create_database().await.unwrap();
        let payments = db.create_database().await.unwrap();
        let user = format!("h{}", &orders.name[orders.name.len() - 20..]);
        let grants = [
            format!("ALL ON `{}`.*", orders.name),
            format!("ALL ON `{}`.*", payments.name),
            "REPLICATION SLAVE, REPLICATION CLIENT ON *.*".to_owned(),
        ];
        db.create_user(&user, SECRET, &grants).await.unwrap();
        let orders = db.user_url(&user, SECRET, &orders.name);
        let payments = db.user_url(&user, SECRET, &payments.name);
        let tokens = format!("ann:operator:{SECRET}");
        let start = |words: &[&str], database: &str| {
            let env = [
                ("DATABASE_URL", database),
                ("AMQP_URL", &broker),
                ("OPS_TOKENS", &tokens),
                ("RUST_LOG", "trace,lapin=trace,lapin::channels=trace"),
            ];
            start(words, &env)
        };
        for (words, database) in [
            (["order-svc", "migrate"], &orders),
            (["pay-svc", "migrate"], &payments),
        ] {
            let migrate = start(&words, database);
            assert!(migrate.wait_exit(SOON).await.unwrap().success());
            hidden(words[0], &migrate.log());
        }
        let relay = start(&["relay", "run"], &orders);
        let pay = start(&["pay-svc", "run"], &payments);
        sqlx::query(
            "INSERT INTO outbox (message_id, aggregate_type, aggregate_id, event_type, routing_key, \
             payload) VALUES (UUID(), 'order', '1', 'other.v1', 'order.other', ?)",
        )
        .bind(SECRET)
        .execute(&sqlx::MySqlPool::connect(&orders).await.unwrap())
        .await
        .unwrap();
        let inbox = sqlx::MySqlPool::connect(&payments).await.unwrap();
        until("the message to arrive", SOON, async || {
            let rows = sqlx::query_scalar("SELECT COUNT(*) FROM inbox");
            rows.fetch_one(&inbox)
                .await
                .is_ok_and(|rows: i64| rows == 1)
        })
        .await;
        for process in [&relay, &pay] {
            process.terminate().unwrap();
            process.wait_exit(SOON).await.unwrap();
            hidden("at trace", &process.log());
            assert!(process.log().contains("DEBUG"), "{}", process.log());
        }
    }
}
