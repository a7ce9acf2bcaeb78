//! A headless Chromium, driven over WebDriver.
//!
//! The protocol is a dozen JSON requests to a server on loopback. The crate for it brings Mozilla's
//! licence and a second version of half the HTTP stack; the HTTP client that is here already is enough.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use e2e::{port, product::Process, wait};
use serde_json::{Value, json};

/// How long a page may take to show something, on a machine that is busy.
const SOON: Duration = Duration::from_secs(20);
/// The name WebDriver gives a reference to an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// Flags of the browser: nothing of its own goes over the network, and it runs as root in CI.
const FLAGS: &[&str] = &[
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
];

/// A window.
pub(crate) struct Browser {
    client: reqwest::Client,
    session: String,
    // Dropped last: the browser is a child of the driver, in its process group.
    _driver: Process,
    _profile: tempfile::TempDir,
}

/// Something on the page.
pub(crate) struct Element<'b> {
    browser: &'b Browser,
    url: String,
}

impl Browser {
    /// Starts driver and browser with a profile of their own.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let profile = tempfile::tempdir()?;
        let home = profile.path().to_str().context("a path is text")?;
        let port = port::free()?;
        let driver = Process::spawn(
            Path::new("/usr/bin/chromedriver"),
            &[&format!("--port={port}")],
            &[("HOME", home)],
        )?;
        let client = e2e::stage::client()?;
        let base = format!("http://127.0.0.1:{port}");
        let up = wait::try_until("chromedriver to answer", SOON, async || {
            client.get(format!("{base}/status")).send().await.is_ok()
        });
        up.await.with_context(|| driver.log())?;
        let mut flags: Vec<String> = FLAGS.iter().map(|&flag| flag.to_owned()).collect();
        flags.push(format!("--user-data-dir={home}/profile"));
        let options = json!({ "args": flags });
        let wanted =
            json!({ "capabilities": { "alwaysMatch": { "goog:chromeOptions": options } } });
        let answer = command(client.post(format!("{base}/session")).json(&wanted)).await?;
        let id = answer["sessionId"]
            .as_str()
            .context("a session has an id")?;
        Ok(Self {
            session: format!("{base}/session/{id}"),
            client,
            _driver: driver,
            _profile: profile,
        })
    }

    async fn post(&self, path: &str, body: Value) -> anyhow::Result<Value> {
        command(
            self.client
                .post(format!("{}{path}", self.session))
                .json(&body),
        )
        .await
    }

    async fn get(&self, path: &str) -> anyhow::Result<Value> {
        command(self.client.get(format!("{}{path}", self.session))).await
    }

    /// Opens a page and waits until it is loaded.
    pub(crate) async fn open(&self, url: &str) -> anyhow::Result<()> {
        self.post("/url", json!({ "url": url })).await?;
        Ok(())
    }

    /// The address of the page.
    pub(crate) async fn address(&self) -> anyhow::Result<String> {
        text(&self.get("/url").await?)
    }

    /// All elements that match a CSS selector at this moment.
    pub(crate) async fn all(&self, css: &str) -> anyhow::Result<Vec<Element<'_>>> {
        self.find("css selector", css).await
    }

    async fn find(&self, using: &str, value: &str) -> anyhow::Result<Vec<Element<'_>>> {
        let wanted = json!({ "using": using, "value": value });
        let found = self.post("/elements", wanted).await?;
        let found = found.as_array().context("elements are a list")?;
        found
            .iter()
            .map(|element| {
                let id = element[ELEMENT].as_str().context("an element has an id")?;
                let url = format!("{}/element/{id}", self.session);
                Ok(Element { browser: self, url })
            })
            .collect()
    }

    async fn first(&self, using: &str, value: &str) -> anyhow::Result<Element<'_>> {
        let what = format!("{value} on the page");
        let found = wait::try_until(&what, SOON, async || {
            let mut found = self.find(using, value).await.ok()?;
            (!found.is_empty()).then(|| found.swap_remove(0))
        });
        match found.await {
            Ok(element) => Ok(element),
            Err(err) => {
                let (at, page) = (self.address().await?, self.text().await?);
                Err(anyhow::Error::from(err).context(format!("at {at}, which says:\n{page}")))
            }
        }
    }

    /// The first element that matches a CSS selector; waits for it.
    pub(crate) async fn element(&self, css: &str) -> anyhow::Result<Element<'_>> {
        self.first("css selector", css).await
    }

    /// The first button or link with this text; waits for it.
    pub(crate) async fn control(&self, label: &str) -> anyhow::Result<Element<'_>> {
        let says = format!("normalize-space(.)='{label}'");
        self.first(
            "xpath",
            &format!("//button[{says}]|//a[{says}]|//summary[{says}]"),
        )
        .await
    }

    /// Whether a button or link with this text is on the page at this moment.
    pub(crate) async fn offers(&self, label: &str) -> anyhow::Result<bool> {
        let says = format!("normalize-space(.)='{label}'");
        let path = format!("//button[{says}]|//a[{says}]");
        Ok(!self.find("xpath", &path).await?.is_empty())
    }

    /// Waits until the page shows this text.
    pub(crate) async fn shows(&self, wanted: &str) -> anyhow::Result<()> {
        let what = format!("the page to show {wanted:?}");
        let shown = wait::try_until(&what, SOON, async || {
            self.text().await.is_ok_and(|text| text.contains(wanted))
        });
        if let Err(err) = shown.await {
            let (at, page) = (self.address().await?, self.text().await?);
            return Err(anyhow::Error::from(err).context(format!("at {at}, which says:\n{page}")));
        }
        Ok(())
    }

    /// What a person reads on the page.
    pub(crate) async fn text(&self) -> anyhow::Result<String> {
        text(&self.run("return document.body.innerText").await?)
    }

    /// The result of a script in the page: the driver may, though the page itself may not.
    pub(crate) async fn run(&self, script: &str) -> anyhow::Result<Value> {
        let script = json!({ "script": script, "args": [] });
        self.post("/execute/sync", script).await
    }

    /// The cookies this page may send; those scripts can't see are among them.
    pub(crate) async fn cookies(&self) -> anyhow::Result<Value> {
        self.get("/cookie").await
    }

    /// Makes the window as wide as this many CSS pixels, and light or dark.
    pub(crate) async fn look(&self, width: u32, dark: bool) -> anyhow::Result<()> {
        let height = if width < 600 { 844 } else { 900 };
        let metrics =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.devtools("Emulation.setDeviceMetricsOverride", metrics)
            .await?;
        let scheme = if dark { "dark" } else { "light" };
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        let media = json!({ "features": features });
        self.devtools("Emulation.setEmulatedMedia", media).await
    }

    async fn devtools(&self, cmd: &str, params: Value) -> anyhow::Result<()> {
        let body = json!({ "cmd": cmd, "params": params });
        self.post("/goog/cdp/execute", body).await?;
        Ok(())
    }

    /// Writes the whole page, however long, to a PNG file.
    pub(crate) async fn picture(&self, path: PathBuf) -> anyhow::Result<()> {
        let params = json!({ "format": "png", "captureBeyondViewport": true });
        let body = json!({ "cmd": "Page.captureScreenshot", "params": params });
        let answer = self.post("/goog/cdp/execute", body).await?;
        let data = answer["data"].as_str().context("a picture has data")?;
        std::fs::write(&path, decode_base64(data)?)
            .with_context(|| format!("could not write {}", path.display()))
    }

    /// Ends the browser in an orderly way.
    pub(crate) async fn close(self) -> anyhow::Result<()> {
        command(self.client.delete(&self.session)).await?;
        Ok(())
    }
}

impl Element<'_> {
    /// Clicks it, and waits for the page it leads to.
    pub(crate) async fn click(&self) -> anyhow::Result<()> {
        self.post("click", json!({})).await?;
        Ok(())
    }

    /// Replaces what is in a field.
    pub(crate) async fn fill(&self, content: &str) -> anyhow::Result<()> {
        self.post("clear", json!({})).await?;
        self.type_in(content).await
    }

    /// Types on the keyboard.
    pub(crate) async fn type_in(&self, keys: &str) -> anyhow::Result<()> {
        self.post("value", json!({ "text": keys })).await?;
        Ok(())
    }

    async fn post(&self, action: &str, body: Value) -> anyhow::Result<Value> {
        let client = &self.browser.client;
        command(client.post(format!("{}/{action}", self.url)).json(&body)).await
    }
}

/// Sends a WebDriver command and gives its value.
async fn command(request: reqwest::RequestBuilder) -> anyhow::Result<Value> {
    let response = request.send().await?;
    let (status, url) = (response.status(), response.url().clone());
    let mut body: Value = response.json().await?;
    let value = body["value"].take();
    if !status.is_success() {
        bail!("{url}: {} {}", value["error"], value["message"]);
    }
    Ok(value)
}

fn text(value: &Value) -> anyhow::Result<String> {
    Ok(value
        .as_str()
        .context("the driver did not send text")?
        .to_owned())
}

/// Standard alphabet with padding, as the driver sends pictures.
fn decode_base64(text: &str) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0_u32);
    for symbol in text.trim_end_matches('=').bytes() {
        let six = match symbol {
            b'A'..=b'Z' => symbol - b'A',
            b'a'..=b'z' => symbol - b'a' + 26,
            b'0'..=b'9' => symbol - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            other => bail!("{other:#x} is not base64"),
        };
        bits = bits << 6 | u32::from(six);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 0xff) as u8);
        }
    }
    ensure!(count < 6, "the picture is cut off");
    Ok(bytes)
}
