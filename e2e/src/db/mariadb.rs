//! MariaDB from the machine's own packages.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};

use crate::{cache, home::Home, owner::Owner, program};

/// Part of the template's name: raise it when the set-up below changes.
const TEMPLATE: &str = "1";

/// A directory with fresh data, and the server's program.
pub(super) fn prepare() -> anyhow::Result<(Home, PathBuf)> {
    let server = program::find("mariadbd", "mariadb-server-core")?;
    let home = Home::create("mariadb", None)?;
    let version = cache::version_key(&mut Command::new(&server))?;
    let name = format!("{version}-{TEMPLATE}");
    cache::copy_template(&templates()?, &name, &home.host("data"), |dir| {
        fill(&server, dir)
    })?;
    Ok((home, server))
}

/// What MariaDB needs beyond the common arguments. GTIDs are always on here.
pub(super) fn arguments() -> Vec<String> {
    vec![
        "--gtid-strict-mode=ON".to_owned(),
        "--feedback=OFF".to_owned(),
    ]
}

/// The cache directory, or this process's own when that can't be written.
fn templates() -> anyhow::Result<PathBuf> {
    let shared = cache::dir()?.join("templates");
    if fs::create_dir_all(&shared).is_ok() && tempfile::tempfile_in(&shared).is_ok() {
        return Ok(shared);
    }
    Ok(Owner::get()?.root().to_owned())
}

fn fill(server: &Path, dir: &Path) -> anyhow::Result<()> {
    let data = dir.join("data");
    let install = program::find("mariadb-install-db", "mariadb-server-core")?;
    super::run(
        Command::new(install)
            .args([
                "--no-defaults",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            ])
            .arg(format!("--datadir={}", data.display()))
            .args(root_arg()),
    )?;
    // Anonymous users would shadow `user@'%'` for logins from 127.0.0.1.
    let sql = format!(
        "FLUSH PRIVILEGES;\n{}DELETE FROM mysql.global_priv WHERE User IN ('', 'root');\n",
        super::admin_sql()
    );
    bootstrap(server, &data, &sql)
}

/// Runs SQL on a data directory without a running server.
fn bootstrap(server: &Path, data: &Path, sql: &str) -> anyhow::Result<()> {
    let mut child = Command::new(server)
        .args(["--no-defaults", "--bootstrap"])
        .arg(format!("--datadir={}", data.display()))
        .args(root_arg())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("could not start mariadbd --bootstrap")?;
    let mut stdin = child
        .stdin
        .take()
        .context("mariadbd has no standard input")?;
    stdin
        .write_all(sql.as_bytes())
        .context("mariadbd --bootstrap did not read")?;
    drop(stdin);
    let output = child
        .wait_with_output()
        .context("could not wait for mariadbd --bootstrap")?;
    let log = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "mariadbd --bootstrap failed:\n{log}"
    );
    // It exits with 0 even if a statement failed.
    ensure!(
        !log.contains("ERROR"),
        "mariadbd --bootstrap failed:\n{log}"
    );
    Ok(())
}

fn root_arg() -> Option<&'static str> {
    cache::is_root().then_some("--user=root")
}
