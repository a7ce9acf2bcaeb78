//! A throwaway Prometheus with the project's own rules, over services that run.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::{
    owner::Owner,
    port,
    product::Process,
    stage::{Service, client},
    wait,
};

const PROGRAM: &str = "/usr/bin/prometheus";
const SOON: Duration = Duration::from_secs(30);

/// The server; it ends when dropped.
pub struct Prometheus {
    url: String,
    client: reqwest::Client,
    process: Process,
}

impl Prometheus {
    /// Starts one that scrapes these services every second, each as the job of its name, and
    /// evaluates `rules`.
    pub async fn start(services: &[&Service], rules: &Path) -> anyhow::Result<Self> {
        let program = PathBuf::from(PROGRAM);
        ensure!(
            program.exists(),
            "there is no {PROGRAM}: install prometheus"
        );
        let dir = directory()?;
        fs::copy(rules, dir.join("rules.yml")).context("the rules")?;
        fs::write(dir.join("prometheus.yml"), settings(services))?;
        let listen = format!("127.0.0.1:{}", port::free()?);
        let args = [
            format!("--config.file={}", dir.join("prometheus.yml").display()),
            format!("--storage.tsdb.path={}", dir.join("data").display()),
            format!("--web.listen-address={listen}"),
        ];
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let server = Self {
            url: format!("http://{listen}"),
            client: client()?,
            process: Process::spawn(&program, &args, &[])?,
        };
        let scraped = format!("sum(up) == {}", services.len());
        let ready = wait::try_until("all services to be scraped", SOON, async || {
            let found = server.query(&scraped).await.ok()?;
            (!found.is_empty()).then_some(())
        });
        ready.await.with_context(|| server.process.log())?;
        Ok(server)
    }

    /// The series that an expression has now.
    pub async fn query(&self, expression: &str) -> anyhow::Result<Vec<Value>> {
        let data = self.get("query", &[("query", expression)]).await?;
        let series = data["result"].as_array().cloned();
        series.with_context(|| format!("no series in {data}"))
    }

    /// All rules, each with its state.
    pub async fn rules(&self) -> anyhow::Result<Vec<Value>> {
        let data = self.get("rules", &[]).await?;
        let groups = data["groups"].as_array().context("groups of rules")?;
        let rules = groups.iter().filter_map(|group| group["rules"].as_array());
        Ok(rules.flatten().cloned().collect())
    }

    async fn get(&self, what: &str, query: &[(&str, &str)]) -> anyhow::Result<Value> {
        let mut url = reqwest::Url::parse(&format!("{}/api/v1/{what}", self.url))?;
        url.query_pairs_mut().extend_pairs(query);
        let answer: Value = self.client.get(url).send().await?.json().await?;
        if answer["status"] != "success" {
            bail!("{query:?}: {answer}");
        }
        Ok(answer["data"].clone())
    }
}

fn directory() -> anyhow::Result<PathBuf> {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let dir = Owner::get()?.root().join(format!("prometheus-{number}"));
    fs::create_dir_all(&dir).with_context(|| format!("could not make {}", dir.display()))?;
    Ok(dir)
}

fn settings(services: &[&Service]) -> String {
    let mut text = "global: { scrape_interval: 1s, evaluation_interval: 1s }\n\
                    rule_files: [rules.yml]\nscrape_configs:\n"
        .to_owned();
    for service in services {
        let target = service.admin.trim_start_matches("http://");
        text.push_str(&format!(
            "  - job_name: {}\n    static_configs: [{{ targets: [\"{target}\"] }}]\n",
            service.name
        ));
    }
    text
}
