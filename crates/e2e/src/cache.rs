//! What is fetched once and kept: whole server installations, and initialised data directories.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, bail, ensure};

use crate::owner::Owner;

/// Part of every template's name: raise it when the way they are made changes.
const TEMPLATES: u32 = 1;

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
    let root = installed("rabbitmq4", "usr/lib/rabbitmq/bin/rabbitmq-server")?;
    ensure!(
        is_root(),
        "{} runs in a chroot, and only root can enter one",
        root.display()
    );
    Ok(root)
}

fn installed(name: &str, program: &str) -> anyhow::Result<PathBuf> {
    let root = dir()?.join(name);
    ensure!(
        root.join(program).exists(),
        "{} is not there; fetch it with `cargo run -p e2e -- fetch-{name}`",
        root.join(program).display()
    );
    Ok(root)
}

/// Whether this process may use `chroot`.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// An initialised data directory, kept so that a server starts in a moment.
#[derive(Debug)]
pub(crate) struct Template(PathBuf);

/// The template of the server that `command` runs; `make` fills it when it is not there yet.
///
/// `make` is given an empty directory, in which it creates `data`. That is renamed into place when
/// complete, so that two processes never see half of one.
pub(crate) fn template(
    command: &mut Command,
    make: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<Template> {
    static MAKING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let parent = templates()?;
    let template = parent.join(format!("{}-{TEMPLATES}", version(command)?));
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
    Ok(Template(template))
}

impl Template {
    /// Copies the template; `target` must not exist.
    pub(crate) fn copy_to(&self, target: &Path) -> anyhow::Result<()> {
        // Sparse: the zeroes of fresh log files need neither disk nor time.
        let copied = Command::new("cp")
            .args(["-a", "--sparse=always", "--reflink=auto"])
            .args([&self.0, target])
            .status()
            .context("could not run cp")?;
        ensure!(
            copied.success(),
            "could not copy {} to {}",
            self.0.display(),
            target.display()
        );
        Ok(())
    }
}

/// In the cache directory, or in this process's own when that can't be written.
fn templates() -> anyhow::Result<PathBuf> {
    let shared = dir()?.join("templates");
    if fs::create_dir_all(&shared).is_ok() && tempfile::tempfile_in(&shared).is_ok() {
        return Ok(shared);
    }
    Ok(Owner::get()?.root().to_owned())
}

/// A program's `--version`, as a name fit for a file.
fn version(command: &mut Command) -> anyhow::Result<String> {
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
