//! MariaDB from the machine's own packages.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};

use super::Program;
use crate::{cache, program};

/// The server's program and the data directory to copy.
pub(super) fn prepare() -> anyhow::Result<(Program, cache::Template)> {
    let path: PathBuf = program::find("mariadbd", "mariadb-server-core")?;
    let template = cache::template(&mut Command::new(&path), |dir| fill(&path, dir))?;
    Ok((
        Program {
            path,
            args: vec!["--no-defaults".to_owned()],
        },
        template,
    ))
}

/// What MariaDB needs beyond the common arguments. GTIDs are always on here.
pub(super) fn arguments() -> Vec<String> {
    vec![
        "--gtid-strict-mode=ON".to_owned(),
        "--feedback=OFF".to_owned(),
    ]
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
                // A minimal container can't even look up its own name.
                "--force",
            ])
            .arg(format!("--datadir={}", data.display()))
            .args(super::root_arg()),
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
        .args(super::root_arg())
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
