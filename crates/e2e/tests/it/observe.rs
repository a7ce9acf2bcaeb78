//! What is seen of the system is what it shows: METRICS.md, the dashboards and the alert rules, over
//! services that run.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use e2e::{prometheus::Prometheus, shop::Shop, stage::Stage, wait};
use serde_json::Value;

const LATER: Duration = Duration::from_secs(60);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

#[tokio::test]
async fn every_metric_is_documented_and_no_panel_is_empty() {
    let canary = [("RELAY_CANARY_INTERVAL", "1s")];
    let stage = Stage::with(e2e::shared::flavor(), &canary).await.unwrap();
    let services = [&stage.order, &stage.relay, &stage.pay];
    let rules = root().join("grafana/prometheus/rules.yml");
    let prometheus = Prometheus::start(&services, &rules).await.unwrap();
    let shop = Shop::new(&stage.order.url, 300, 50).unwrap();
    let (sold, ()) = futures::join!(shop.open(), trouble(&stage));
    sold.unwrap();
    documented(&stage).await;
    for dashboard in fs::read_dir(root().join("grafana/dashboards")).unwrap() {
        panels(&prometheus, &dashboard.unwrap().path()).await;
    }
    let flies = "outbox_relay_canary_seconds > 0 and outbox_relay_canary_age_seconds < 5";
    assert_eq!(prometheus.query(flies).await.unwrap().len(), 1);
    for rule in prometheus.rules().await.unwrap() {
        assert_eq!(rule["health"], "ok", "{rule}");
    }
}

/// A row of a closed route, a parked row and a parked message, so that there is something to show.
async fn trouble(stage: &Stage) {
    let insert = "INSERT INTO orders.outbox (message_id, aggregate_type, aggregate_id, event_type, \
                  routing_key, payload, status) VALUES (?, 't', ?, 'stock.moved.v1', ?, '{}', ?)";
    for (key, route, status) in [
        ("closed", "nobody.listens", 1),
        ("parked", "order.pay", 3),
        ("unknown type", "order.pay", 1),
    ] {
        sqlx::query(insert)
            .bind(uuid::Uuid::now_v7().to_string())
            .bind(key)
            .bind(route)
            .bind(status)
            .execute(&stage.pool)
            .await
            .unwrap();
    }
}

/// Type and label names of every metric of a `/metrics` answer; each has its HELP.
fn shown(metrics: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut all = BTreeMap::new();
    let mut help = BTreeSet::new();
    for line in metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, words) = rest.split_once(' ').unwrap();
            assert!(words.len() > 10, "{line}");
            help.insert(name.to_owned());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(help.contains(name), "{name} has no HELP");
            all.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
        } else {
            let name = line.split(['{', ' ']).next().unwrap();
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| {
                name.strip_suffix(end)
                    .filter(|name| all.contains_key(*name))
            });
            let (_, labels) = all.get_mut(family.unwrap_or(name)).unwrap();
            labels.extend(label_names(line));
        }
    }
    all
}

/// Values may have anything in them but an unescaped quote.
fn label_names(line: &str) -> Vec<String> {
    let Some((_, inside)) = line.split_once('{') else {
        return Vec::new();
    };
    let names = inside.split('"').step_by(2);
    let names = names.filter_map(|part| part.trim_start_matches(',').strip_suffix('='));
    names
        .filter(|name| *name != "le")
        .map(str::to_owned)
        .collect()
}

/// The tables of METRICS.md by their headings.
fn tables() -> BTreeMap<String, BTreeMap<String, (String, BTreeSet<String>)>> {
    let mut tables: BTreeMap<String, BTreeMap<_, _>> = BTreeMap::new();
    let mut heading = String::new();
    for line in text("docs/METRICS.md").lines() {
        if let Some(title) = line.strip_prefix("## ") {
            title.clone_into(&mut heading);
        } else if let Some(row) = line.strip_prefix("| `") {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let labels = cells[2].split(", ").filter(|label| !label.is_empty());
            let labels = labels.map(str::to_owned).collect();
            let name = cells[0].trim_end_matches('`').to_owned();
            assert!(!cells[3].is_empty(), "{name} is not explained");
            let table = tables.entry(heading.clone()).or_default();
            let twice = table.insert(name, (cells[1].to_owned(), labels));
            assert!(twice.is_none(), "{row}");
        }
    }
    tables
}

async fn documented(stage: &Stage) {
    let tables = tables();
    for service in [&stage.relay, &stage.pay, &stage.order] {
        let mut documented = tables[service.name].clone();
        documented.extend(tables["All three"].clone());
        let url = format!("{}/metrics", service.admin);
        let look = async || {
            let answer = reqwest::get(&url).await.unwrap();
            shown(&answer.text().await.unwrap())
        };
        // The waiting route shows up when its first row has failed.
        let same = wait::try_until("what METRICS.md says", LATER, async || {
            look().await == documented
        });
        if same.await.is_err() {
            assert_eq!(look().await, documented, "{}", service.name);
        }
    }
}

async fn panels(prometheus: &Prometheus, dashboard: &Path) {
    let json: Value = serde_json::from_str(&fs::read_to_string(dashboard).unwrap()).unwrap();
    let mut expressions = 0;
    for panel in json["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        if panel["type"] == "row" {
            continue;
        }
        let described = panel["description"].as_str().unwrap_or_default();
        assert!(described.len() > 40, "{title:?} does not say what is bad");
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            let expression = expression.replace("$__rate_interval", "30s");
            assert!(!expression.contains('$'), "{expression}");
            wait::until(&format!("series in {title:?}"), LATER, async || {
                !prometheus.query(&expression).await.unwrap().is_empty()
            })
            .await;
            expressions += 1;
        }
    }
    assert!(expressions > 5, "{}: {expressions}", dashboard.display());
}

#[test]
fn the_rules_fire_when_they_must_and_not_before() {
    let dir = root().join("grafana/prometheus");
    for args in [
        ["check", "config", "--syntax-only", "prometheus.yml"].as_slice(),
        &["check", "rules", "rules.yml"],
        &["test", "rules", "rules_test.yml"],
    ] {
        let tried = Command::new("promtool")
            .args(args)
            .current_dir(&dir)
            .output();
        let done = tried.unwrap_or_else(|err| panic!("promtool: {err}; install prometheus"));
        let reported = String::from_utf8_lossy(&done.stdout);
        let complained = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{args:?}: {reported}{complained}");
    }
}

#[test]
fn every_alert_has_a_section_in_the_runbook_and_a_test_both_ways() {
    let rules = text("grafana/prometheus/rules.yml");
    let tests = text("grafana/prometheus/rules_test.yml");
    let runbook = text("docs/RUNBOOK.md");
    let alerts = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    let alerts: Vec<&str> = alerts.collect();
    assert!(alerts.len() >= 14, "{alerts:?}");
    for alert in alerts {
        let anchor = format!("docs/RUNBOOK.md#{}", alert.to_lowercase());
        assert!(rules.contains(&anchor), "{alert} names no section");
        let section = runbook.split(&format!("\n## {alert}\n")).nth(1);
        let section = section.unwrap_or_else(|| panic!("RUNBOOK.md has no section {alert}"));
        let section = section.split("\n## ").next().unwrap();
        for part in ["**At stake:**", "**Look:**", "**Do:**"] {
            assert!(section.contains(part), "{alert}: {part}");
        }
        let calm = format!("alertname: {alert}, exp_alerts: [] ");
        assert!(tests.contains(&calm), "no test in which {alert} is silent");
        let fires = format!("alertname: {alert}\n        exp_alerts:\n");
        assert!(tests.contains(&fires), "no test in which {alert} fires");
    }
}
