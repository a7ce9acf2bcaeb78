//! What is fetched once and kept: whole server installations, and initialised data directories.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, bail, ensure};

use crate::owner::Owner;

/// The cache directory: `OUTBOX_RELAY_CACHE`, or `/var/cache/outbox-relay` for root and the
/// user's own cache directory for anybody else.
pub fn dir() -> anyhow::Result<PathBuf> {
    if let Some(dir) = env::var_os("OUTBOX_RELAY_CACHE") {
        return Ok(dir.into());
    }
    if is_root() {
        return Ok("/var/cache/outbox-relay".into());
    }
    let base = match (env::var_os("XDG_CACHE_HOME"), env::var_os("HOME")) {
        (Some(dir), _) => PathBuf::from(dir),
        (None, Some(home)) => PathBuf::from(home).join(".cache"),
        (None, None) => bail!("neither HOME nor OUTBOX_RELAY_CACHE is set"),
    };
    Ok(base.join("outbox-relay"))
}

/// Real MySQL's installation root, or why it can't be used.
pub fn mysql_root() -> anyhow::Result<PathBuf> {
    installed("mysql", "usr/sbin/mysqld")
}

/// RabbitMQ 4's installation root, or why it can't be used.
pub fn rabbitmq4_root() -> anyhow::Result<PathBuf> {
    installed("rabbitmq4", "usr/lib/rabbitmq/bin/rabbitmq-server")
}

fn installed(name: &str, program: &str) -> anyhow::Result<PathBuf> {
    let root = dir()?.join(name);
    ensure!(
        root.join(program).exists(),
        "{} is not there; fetch it with `cargo run -p e2e -- fetch-{name}`",
        root.join(program).display()
    );
    ensure!(
        is_root(),
        "{} runs in a chroot, and only root can enter one",
        root.display()
    );
    Ok(root)
}

/// Whether this process may use `chroot`.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Copies the data directory `parent/name` to `target`; `make` fills it when it is not there yet.
///
/// `make` is given an empty directory, in which it creates `data`. That is renamed into place when
/// complete, so that two processes never see half of one.
pub(crate) fn copy_template(
    parent: &Path,
    name: &str,
    target: &Path,
    make: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    static MAKING: Mutex<()> = Mutex::new(());
    let template = parent.join(name);
    let one_at_a_time = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    if !template.exists() {
        let owner = Owner::get()?;
        let partial = parent.join(owner.token());
        owner.create_dir(&partial)?;
        make(&partial)?;
        if let Err(err) = fs::rename(partial.join("data"), &template)
            && !template.exists()
        {
            return Err(err).with_context(|| format!("could not create {}", template.display()));
        }
        fs::remove_dir_all(&partial)
            .with_context(|| format!("could not remove {}", partial.display()))?;
    }
    drop(one_at_a_time);
    // Sparse: the zeroes of fresh log files need neither disk nor time.
    let copied = Command::new("cp")
        .args(["-a", "--sparse=always", "--reflink=auto"])
        .args([&template, target])
        .status()
        .context("could not run cp")?;
    ensure!(
        copied.success(),
        "could not copy {} to {}",
        template.display(),
        target.display()
    );
    Ok(())
}

/// A program's `--version`, as a name fit for a file.
pub(crate) fn version_key(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .arg("--version")
        .output()
        .context("could not run it")?;
    ensure!(
        output.status.success(),
        "--version failed: {}",
        output.status
    );
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text
        .split_whitespace()
        // The first word is the program's path.
        .skip(1)
        .flat_map(|word| ["-", word])
        .skip(1)
        .flat_map(str::chars)
        .filter(|c| c.is_ascii_alphanumeric() || ".+-_".contains(*c))
        .collect())
}
