//! What a newcomer reads is true: each command of README is one that a test or CI runs, each link
//! leads somewhere, and compose publishes nothing beyond the loopback.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use e2e::product;

/// These start with `make up`, or need a system's own services.
const NOT_RUN: [&str; 5] = [
    "make up",
    "make down",
    "systemctl enable --now relay",
    "systemctl status",
    "systemctl edit relay",
];
const PROGRAMS: [&str; 3] = ["relay", "order-svc", "pay-svc"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|err| panic!("{path}: {err}"))
}

/// All sources under a directory, as one text.
fn sources(directory: &Path) -> String {
    let mut all = String::new();
    for entry in fs::read_dir(directory).unwrap_or_else(|err| panic!("{directory:?}: {err}")) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all += &sources(&path);
        } else if path.extension().is_some_and(|end| end == "rs") {
            all += &fs::read_to_string(path).unwrap();
        }
    }
    all
}

/// A page's commands, in running text and in blocks without a language: settings and words.
fn commands(page: &str) -> Vec<(Vec<String>, Vec<String>)> {
    let mut found = Vec::new();
    for (n, part) in text(page).split("```").enumerate() {
        if n % 2 == 1 {
            let lines = part.lines().skip(1).filter(|_| part.starts_with('\n'));
            found.extend(lines.map(|line| line.split('#').next().unwrap().to_owned()));
        } else {
            found.extend(part.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    let split = |command: String| {
        let mut words = command.split_whitespace().map(str::to_owned).peekable();
        words.next_if(|word| word == "sudo");
        let mut settings = Vec::new();
        while let Some(setting) = words.next_if(|word| {
            word.split_once('=')
                .is_some_and(|(name, _)| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
        }) {
            settings.push(setting);
        }
        (settings, words.collect::<Vec<_>>())
    };
    let known = ["make", "cargo", "docker", "systemctl"];
    let commands = found.into_iter().map(split).filter(|(_, words)| {
        let is_known = |word: &String| known.iter().chain(&PROGRAMS).any(|name| name == word);
        words.len() > 1 && is_known(&words[0])
    });
    commands.collect()
}

#[test]
fn every_command_of_readme_is_run_by_a_test_or_by_ci() {
    let commands = commands("README.md");
    assert!(commands.len() > 30, "{commands:?}");
    for (settings, words) in commands {
        if NOT_RUN.contains(&words.join(" ").as_str()) {
            continue;
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words[0] {
            "make" => made(&settings, &words),
            "cargo" => built(&words),
            "docker" => assert!(text("crates/e2e/compose/run.sh").contains("relay status")),
            "systemctl" => panic!("{words:?} is run by nobody"),
            program => called(program, &understood(program, &words[1..])),
        }
    }
}

#[test]
fn the_commands_of_the_other_pages_are_there() {
    let docs = fs::read_dir(root().join("docs")).unwrap();
    let docs = docs.map(|entry| format!("docs/{}", entry.unwrap().file_name().display()));
    let pages = docs.filter(|page| page.ends_with(".md"));
    let pages: Vec<String> = pages.chain(["SECURITY.md".to_owned()]).collect();
    let mut tried = 0;
    for (_, words) in pages.iter().flat_map(|page| commands(page)) {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        if PROGRAMS.contains(&words[0]) {
            understood(words[0], &words[1..]);
            tried += 1;
        }
    }
    assert!(tried > 10, "{tried}");
}

/// A target that CI makes, with settings that the Makefile names.
fn made(settings: &[String], words: &[&str]) {
    let makefile = text("Makefile");
    let ci =
        text(".github/workflows/ci.yml") + &text(".ci/run") + &text("crates/e2e/compose/run.sh");
    let ci = ci.replace("make -s ", "make ");
    let mut made = ci.split("make ").skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '-');
        &rest[..end.unwrap_or(rest.len())]
    });
    assert!(
        made.any(|target| target == words[1]),
        "CI runs no {words:?}"
    );
    for setting in settings {
        let (name, value) = setting.split_once('=').unwrap();
        assert!(makefile.contains(&format!("{name}=")), "{setting}");
        if name == "ONLY" {
            let keys = text("crates/e2e/src/bin/bench/catalogue.rs");
            for key in value.split(',') {
                assert!(keys.contains(&format!("\"{key}\"")), "{setting}");
            }
        }
    }
}

/// Part of what `make lint` and `make test` do: a package, a test file and a filter that are there.
fn built(words: &[&str]) {
    let after = |flag: &str| {
        let at = words.iter().position(|word| *word == flag)?;
        words.get(at + 1).copied()
    };
    if words[1] == "deny" {
        assert!(text("Makefile").contains("cargo deny"));
        return;
    }
    let package = after("-p").unwrap_or_else(|| panic!("{words:?} names no package"));
    let home = home(package);
    let manifest = fs::read_to_string(home.join("Cargo.toml")).unwrap();
    if let Some(feature) = after("--features") {
        assert!(manifest.contains(&format!("\n{feature} = [")), "{words:?}");
    }
    let (tests, filter) = match after("--test") {
        Some(test) => (
            home.join("tests").join(test),
            words.iter().skip_while(|word| **word != test).nth(1),
        ),
        None => (
            home.join("src"),
            words.iter().skip_while(|word| **word != "--lib").nth(1),
        ),
    };
    let tests = sources(&tests);
    if let Some(filter) = filter {
        for module in filter.split("::") {
            let is_there = tests.contains(&format!("mod {module};"));
            assert!(is_there, "{words:?}: no tests of that name");
        }
    }
}

/// The directory of a package: the programs are on top, libraries and tools in `crates`.
fn home(package: &str) -> PathBuf {
    let on_top = root().join(package);
    if on_top.exists() {
        on_top
    } else {
        root().join("crates").join(package)
    }
}

/// A subcommand that is there and has these flags; its words.
fn understood<'a>(program: &str, words: &[&'a str]) -> Vec<&'a str> {
    let names = |word: &&&str| word.chars().all(|c| c.is_ascii_lowercase());
    let sub: Vec<&str> = words.iter().take_while(names).copied().collect();
    let help = Command::new(product::binary(program).unwrap())
        .args(&sub)
        .arg("--help")
        .output()
        .unwrap();
    assert!(help.status.success(), "{program} {words:?}: {help:?}");
    let help = String::from_utf8(help.stdout).unwrap();
    for flag in words.iter().filter(|word| word.starts_with("--")) {
        assert!(help.contains(flag), "{program} {words:?}: no {flag}");
    }
    sub
}

/// A subcommand that its program's tests call.
fn called(program: &str, sub: &[&str]) {
    let tests = sources(&root().join(program).join("tests"));
    assert!(
        sub.iter()
            .all(|word| tests.contains(&format!("\"{word}\""))),
        "no test calls {program} {sub:?}"
    );
}

#[test]
fn every_link_between_the_pages_leads_to_a_file() {
    let directories = [root(), root().join("docs"), root().join("crates/e2e")];
    let mut links = 0;
    for directory in directories {
        for entry in fs::read_dir(&directory).unwrap() {
            let page = entry.unwrap().path();
            if page.extension().is_none_or(|end| end != "md") {
                continue;
            }
            let text = fs::read_to_string(&page).unwrap();
            for rest in text.split("](").skip(1) {
                let target = rest.split([')', '#']).next().unwrap();
                if !target.is_empty() && !target.contains("://") {
                    let is_there = directory.join(target).exists();
                    assert!(is_there, "{}: {target}", page.display());
                    links += 1;
                }
            }
        }
    }
    assert!(links > 5, "{links}");
}

#[test]
fn compose_publishes_on_loopback_alone_and_passes_secrets_as_files() {
    let compose = text("docker-compose.yml");
    let mut ports = 0;
    for line in compose.lines().map(str::trim) {
        if let Some(list) = line.strip_prefix("ports: ") {
            for port in list.split('"').skip(1).step_by(2) {
                assert!(port.starts_with("127.0.0.1:"), "{line}");
                ports += 1;
            }
        }
        let setting = line.split_once(": ").filter(|(name, _)| {
            ["PASSWORD", "TOKEN", "_URL"]
                .iter()
                .any(|end| name.contains(end))
        });
        if let Some((name, value)) = setting {
            assert!(name.ends_with("_FILE"), "{line}");
            assert!(value.starts_with("/run/secrets/"), "{line}");
        }
    }
    assert!(ports >= 12, "{ports}");
    let services = compose.split("\nservices:\n").nth(1).unwrap();
    let services = services.split("\nvolumes:\n").next().unwrap();
    for service in services.split("\n\n") {
        let inherits = ["<<: *order", "<<: *relay", "<<: *migration"];
        let has =
            service.contains("healthcheck:") || inherits.iter().any(|it| service.contains(it));
        assert!(has, "no health check: {service}");
    }
}
