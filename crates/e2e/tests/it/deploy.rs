//! What `deploy`, the Dockerfile and the scripts hold fits the programs and the servers.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use e2e::{Db, DbOptions, Flavor, product};
use sqlx::Row as _;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|err| panic!("{path}: {err}"))
}

/// The files of a directory whose names have one of these ends.
fn files(directory: &str, ends: &[&str]) -> Vec<String> {
    let entries = fs::read_dir(root().join(directory)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let chosen = names.filter(|name| ends.iter().any(|end| name.ends_with(end)));
    chosen.map(|name| format!("{directory}/{name}")).collect()
}

/// The statements of deploy/mysql/init.sql, with what its head says about MariaDB.
fn first_statements(flavor: Flavor) -> Vec<String> {
    let sql = text("deploy/mysql/init.sql");
    let sql: Vec<&str> = sql.lines().filter(|line| !line.starts_with("--")).collect();
    let sql = match flavor {
        Flavor::MySql => sql.join("\n"),
        Flavor::MariaDb => sql
            .join("\n")
            .replace("SESSION_VARIABLES_ADMIN", "BINLOG ADMIN"),
    };
    let statements = sql.split(';').map(str::trim).filter(|it| !it.is_empty());
    statements.map(str::to_owned).collect()
}

#[tokio::test]
async fn the_first_start_of_a_database_gives_every_account_its_rights_before_there_are_tables() {
    let mut flavors = vec![Flavor::MariaDb];
    if e2e::shared::mysql().await.is_some() {
        flavors.push(Flavor::MySql);
    }
    for flavor in flavors {
        let db = Db::start(flavor, DbOptions::default()).await.unwrap();
        // Twice: an administrator may run it again, after the migrations, too.
        for round in 0..2 {
            for statement in first_statements(flavor) {
                let done = db.execute(&statement).await;
                done.unwrap_or_else(|err| panic!("{flavor:?}, round {round}: {err:#}"));
            }
            // The throwaway MariaDB has no certificate.
            db.execute(
                "ALTER USER migrate@'%' IDENTIFIED BY 'migrating' REQUIRE NONE ACCOUNT UNLOCK",
            )
            .await
            .unwrap();
            for (program, database) in [
                ("order-svc", "orders"),
                ("relay", "orders"),
                ("pay-svc", "payments"),
            ] {
                let migrated = Command::new(product::binary(program).unwrap())
                    .arg("migrate")
                    .env(
                        "DATABASE_URL",
                        db.user_url("migrate", "migrating", database),
                    )
                    .output()
                    .unwrap();
                assert!(
                    migrated.status.success(),
                    "{flavor:?} {program}: {migrated:?}"
                );
            }
        }
        for account in ["order_svc", "relay", "pay_svc"] {
            let mut admin = db.admin().await.unwrap();
            let show = sqlx::AssertSqlSafe(format!("SHOW GRANTS FOR {account}@'%'"));
            for grant in sqlx::query(show).fetch_all(&mut admin).await.unwrap() {
                let grant: String = grant.get(0);
                assert!(!grant.contains("CREATE"), "{flavor:?}: {grant}");
            }
        }
    }
}

/// What `program --help` says, of whichever of its commands takes settings.
fn help(program: &str) -> String {
    let help = |command: &str| {
        let output = Command::new(product::binary(program).unwrap())
            .args([command, "--help"])
            .output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    help("run") + &help("migrate")
}

/// The names of settings in a file of `deploy`: `- { name: X,`, `      X: `, `ENV X=… Y=…`, `Environment=X=`.
fn settings(page: &str) -> BTreeSet<String> {
    let words = page.lines().flat_map(|line| {
        let line = line.trim().trim_start_matches("# ");
        let is_setting = ["- { name: ", "ENV ", "Environment="]
            .iter()
            .any(|start| line.starts_with(start))
            || line.split_once(": ").is_some_and(|(name, _)| is_name(name));
        let words =
            line.split(|c: char| !(c.is_ascii_uppercase() || c == '_' || c.is_ascii_digit()));
        words
            .filter(|word| is_setting && is_name(word))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    });
    words.collect()
}

fn is_name(word: &str) -> bool {
    word.len() > 4
        && word.contains('_')
        && word
            .chars()
            .all(|c| c.is_ascii_uppercase() || c == '_' || c.is_ascii_digit())
}

#[test]
fn every_setting_that_a_unit_a_manifest_or_an_image_sets_is_one_of_the_programs() {
    let known = ["relay", "order-svc", "pay-svc"].map(help).concat();
    let mut pages = files("deploy", &[".service"]);
    pages.extend(files("deploy/kubernetes", &[".yaml"]));
    pages.extend(["Dockerfile", "docker-compose.yml"].map(str::to_owned));
    let mut seen = 0;
    for page in pages {
        for name in settings(&text(&page)) {
            // Those of other programs, and of this machine's cargo.
            if ["MYSQL_", "GF_", "CARGO_"]
                .iter()
                .any(|of| name.starts_with(of))
            {
                continue;
            }
            let plain = name.trim_end_matches("_FILE");
            let is_known = known.contains(&format!("[env: {plain}=")) || known.contains(&name);
            assert!(is_known || name == "RUST_LOG", "{page}: {name}");
            seen += 1;
        }
    }
    assert!(seen > 14, "{seen}");
}

#[test]
fn the_dockerfile_builds_and_copies_what_there_is() {
    let dockerfile = text("Dockerfile");
    for line in dockerfile.lines().filter(|line| line.starts_with("COPY ")) {
        let words: Vec<&str> = line.split_whitespace().skip(1).collect();
        if words.iter().any(|word| word.starts_with("--from=")) {
            continue;
        }
        let paths = words.iter().filter(|word| !word.starts_with("--"));
        for path in paths.clone().take(paths.count() - 1) {
            assert!(root().join(path).exists(), "{line}");
            let context = text(".dockerignore");
            assert!(
                *path == "." || context.contains(&format!("\n!{path}\n")),
                "{line}"
            );
        }
    }
    // Everything that `cargo build` reads is in the context.
    let members = text("Cargo.toml");
    let members = members.split("members = [").nth(1).unwrap();
    let members = members.split(']').next().unwrap();
    let members = members.split('"').skip(1).step_by(2);
    let members = members.map(|path| path.trim_end_matches("/*"));
    let context = text(".dockerignore");
    for path in members.chain(["Cargo.toml", "Cargo.lock", ".cargo", "migrations"]) {
        assert!(context.contains(&format!("\n!{path}\n")), "{path}");
    }
    for program in ["relay", "order-svc", "pay-svc"] {
        for part in [
            format!(" -p {program}"),
            format!("target/release/{program} "),
            format!("FROM runtime AS {program}\n"),
            format!("COPY --from=build /out/{program} "),
            format!("ENTRYPOINT [\"{program}\"]"),
        ] {
            assert!(dockerfile.contains(&part), "{part}");
        }
    }
}

/// The command of a pipe's reader that may end before its input does, so that the writer gets SIGPIPE
/// and, under `pipefail`, a good pipeline fails now and then.
fn reader_that_leaves(script: &str) -> Option<String> {
    let script = script.replace("||", "or").replace("\\\n", " ");
    script.split('|').skip(1).find_map(|reader| {
        let reader = reader.trim_start();
        let mut words = reader.lines().next()?.split_whitespace();
        let program = words.next()?.rsplit('/').next()?;
        let quoted = || reader.split('\'').nth(1).unwrap_or_default();
        let flags = words.take_while(|word| word.starts_with('-'));
        let leaves = match program {
            "head" | "read" | "cmp" => true,
            "grep" => flags.into_iter().any(|flag| {
                let is_short = !flag.starts_with("--");
                ["--quiet", "--silent", "--max-count", "--files-with"]
                    .iter()
                    .any(|long| flag.starts_with(long))
                    || (is_short && flag.contains(['q', 'm', 'l']))
            }),
            // `q` and `Q` stand alone or after an address.
            "sed" => quoted()
                .split([';', '\n', '{', '}'])
                .any(|command| command.trim_end().ends_with(['q', 'Q']) && !command.contains("s/")),
            "awk" => quoted()
                .split(|c: char| !c.is_alphanumeric())
                .any(|word| word == "exit"),
            _ => false,
        };
        leaves.then(|| reader.lines().next().unwrap_or_default().to_owned())
    })
}

#[test]
fn no_pipe_of_a_script_has_a_reader_that_leaves_before_its_writer() {
    for caught in [
        "a | head -n 1",
        "a |\n  grep -q x",
        "a | grep --quiet x",
        "a | /usr/bin/grep -m 1 x",
        "a | sed -n '3q'",
        "a | sed '/x/{p;q}'",
        "a | awk '{\n print; exit }'",
        "a \\\n | read -r b",
    ] {
        assert!(reader_that_leaves(caught).is_some(), "{caught}");
    }
    for passed in [
        "a | sort -u",
        "a || head b",
        "a | grep -o x",
        "a | sed 's/q/r/'",
        "a | awk '{ print }'",
    ] {
        assert!(reader_that_leaves(passed).is_none(), "{passed}");
    }
    let mut scripts = vec![
        ".ci/run".to_owned(),
        "Makefile".to_owned(),
        "Dockerfile".to_owned(),
    ];
    for directory in ["crates/e2e", "crates/e2e/compose", "deploy", "deploy/mysql"] {
        scripts.extend(files(directory, &[".sh"]));
    }
    scripts.extend(files(".github/workflows", &[".yml"]));
    assert!(scripts.len() > 15, "{scripts:?}");
    for script in scripts {
        let found = reader_that_leaves(&text(&script));
        assert_eq!(
            found, None,
            "{script}: let it read to the end, or read from a file"
        );
    }
}
