//! Fetching whole server installations that the machine's own packages do not have: a Debian root
//! of their own by debootstrap, kept in the cache directory.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};

use crate::{cache, owner::Owner};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// debootstrap has no time-out of its own.
const TIME_LIMIT: &str = "20m";

/// A server installation to fetch.
#[derive(Clone, Copy, Debug)]
pub struct Installation {
    /// Its directory in the cache.
    name: &'static str,
    /// The Debian suite that has it.
    suite: &'static str,
    package: &'static str,
    /// The program that must be there afterwards, from the new root.
    program: &'static str,
}

/// Real MySQL: Debian's stable releases carry MariaDB alone, sid has both.
pub const MYSQL: Installation = Installation {
    name: "mysql",
    suite: "sid",
    package: "mysql-server-core",
    program: "usr/sbin/mysqld",
};

/// RabbitMQ 4, beside the 3.10 of Debian 12.
pub const RABBITMQ4: Installation = Installation {
    name: "rabbitmq4",
    suite: "trixie",
    package: "rabbitmq-server",
    program: "usr/lib/rabbitmq/bin/rabbitmq-server",
};

/// What [`fetch`] found or did.
#[derive(Debug, PartialEq, Eq)]
pub enum Fetched {
    /// It was there; the directory.
    Reused(PathBuf),
    /// It is there now; the directory.
    New(PathBuf),
}

/// Whether [`fetch`] would have to be root to bring `installation`, and is not.
pub fn needs_root(installation: Installation) -> anyhow::Result<bool> {
    let target = cache::dir()?.join(installation.name);
    Ok(!target.join(installation.program).exists() && !cache::is_root())
}

/// Brings `installation` into the cache directory, unless it is there. Takes a minute or two.
pub async fn fetch(installation: Installation) -> anyhow::Result<Fetched> {
    let cache = cache::dir()?;
    let target = cache.join(installation.name);
    if target.join(installation.program).exists() {
        return Ok(Fetched::Reused(target));
    }
    ensure!(
        cache::is_root(),
        "only root can run debootstrap and enter the chroot it makes"
    );
    ensure!(
        crate::program::find("debootstrap", "debootstrap").is_ok(),
        "debootstrap is not installed (package debootstrap)"
    );
    ensure!(
        Path::new(KEYRING).exists(),
        "{KEYRING} is not there, so that Debian's signatures can't be checked \
         (package debian-archive-keyring)"
    );
    let mirror = mirror();
    if let Some(mirror) = &mirror {
        probe(mirror, installation.suite).await?;
    }
    fs::create_dir_all(&cache).with_context(|| format!("could not create {}", cache.display()))?;
    // Two test runs on one machine must not fetch at the same time.
    let lock = File::create(cache.join(format!("{}.lock", installation.name)))
        .context("could not create the lock file")?;
    lock.lock().context("could not wait for another fetch")?;
    if target.join(installation.program).exists() {
        return Ok(Fetched::Reused(target));
    }
    debootstrap(installation, mirror.as_deref(), &target)?;
    Ok(Fetched::New(target))
}

fn debootstrap(
    installation: Installation,
    mirror: Option<&str>,
    target: &Path,
) -> anyhow::Result<()> {
    let owner = Owner::get()?;
    let partial = target.with_added_extension(owner.token());
    owner.create_dir(&partial)?;
    let (mark, token) = owner.mark();
    let output = Command::new("timeout")
        .args([
            "--kill-after=30s",
            TIME_LIMIT,
            "debootstrap",
            "--variant=minbase",
        ])
        .arg(format!("--keyring={KEYRING}"))
        .arg(format!("--include={}", installation.package))
        .arg(installation.suite)
        .arg(&partial)
        // Without one it takes its own default.
        .args(mirror)
        .env(mark, token)
        .output()
        .context("could not run debootstrap")?;
    if !output.status.success() || !partial.join(installation.program).exists() {
        let log = String::from_utf8_lossy(&output.stdout);
        let lines: Vec<&str> = log.lines().collect();
        bail!(
            "debootstrap of {} from {} {} failed with {}:\n{}\n{}",
            installation.package,
            installation.suite,
            mirror.unwrap_or_default(),
            output.status,
            lines[lines.len().saturating_sub(15)..].join("\n"),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    // What is left of an earlier, broken installation must not be in the way.
    if target.exists() {
        fs::remove_dir_all(target)
            .with_context(|| format!("could not remove {}", target.display()))?;
    }
    fs::rename(&partial, target)
        .with_context(|| format!("could not move {} into place", partial.display()))
}

/// A quick answer instead of debootstrap's many retries when there is no network.
async fn probe(mirror: &str, suite: &str) -> anyhow::Result<()> {
    // This build has no TLS, and a local directory needs no network: debootstrap will find out.
    if !mirror.starts_with("http://") {
        return Ok(());
    }
    let url = format!("{mirror}/dists/{suite}/InRelease");
    let client = reqwest::Client::builder()
        .timeout(Duration::from_secs(30))
        .build()
        .context("could not build an HTTP client")?;
    let response = client.head(&url).send().await;
    let response =
        response.with_context(|| format!("the Debian mirror can't be reached: {url}"))?;
    // A mirror may redirect to https, which this client can't follow to its end.
    let status = response.status();
    ensure!(
        !status.is_client_error() && !status.is_server_error(),
        "{url}: {status}"
    );
    Ok(())
}

/// The Debian mirror this machine's apt uses, if it uses one (Ubuntu does not).
fn mirror() -> Option<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    files.sort();
    files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .find_map(|text| debian_mirror(&text))
}

/// The first mirror of Debian proper (not its security archive) that an apt source file names, in
/// the one-line or the deb822 format.
fn debian_mirror(sources: &str) -> Option<String> {
    sources
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("deb ") || line.starts_with("URIs:"))
        .flat_map(str::split_whitespace)
        .map(|word| word.trim_end_matches('/'))
        .find(|word| {
            let usable = ["http://", "https://", "file:"]
                .iter()
                .any(|s| word.starts_with(s));
            usable && word.ends_with("/debian")
        })
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::debian_mirror;

    #[test]
    fn the_mirror_is_read_from_both_formats_of_apt() {
        let one_line = "# deb http://old/debian x main\n\
                        deb http://security.example/debian-security bookworm-security main\n\
                        deb [signed-by=/k.gpg arch=amd64] https://mirror.example/debian/ sid main\n";
        assert_eq!(
            debian_mirror(one_line).as_deref(),
            Some("https://mirror.example/debian")
        );
        let deb822 = "Types: deb\n# http://snapshot.example/archive/debian/1\n\
                      URIs: http://mirror.example/debian-security http://mirror.example/debian\n\
                      Suites: bookworm\n";
        assert_eq!(
            debian_mirror(deb822).as_deref(),
            Some("http://mirror.example/debian")
        );
    }

    #[test]
    fn another_distribution_names_no_debian_mirror() {
        assert_eq!(
            debian_mirror("deb http://mirror.example/ubuntu noble main\n"),
            None
        );
        assert_eq!(
            debian_mirror("URIs: mirror+file:/etc/apt/mirrors/debian.list\n"),
            None
        );
    }
}
