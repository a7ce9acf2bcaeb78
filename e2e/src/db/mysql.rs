//! Real MySQL from the cache directory, in its chroot.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use crate::{cache, home::Home};

/// Part of the template's name: raise it when the set-up below changes.
const TEMPLATE: &str = "1";
const SERVER: &str = "/usr/sbin/mysqld";
/// Where initialised data directories are kept, as seen from inside.
const TEMPLATES: &str = "srv/templates";

/// A directory with fresh data, and the server's program.
pub(super) fn prepare() -> anyhow::Result<(Home, PathBuf)> {
    let root = cache::mysql_root()?;
    let home = Home::create("mysql", Some(&root))?;
    let version = cache::version_key(&mut in_chroot(&root))?;
    let name = format!("{version}-{TEMPLATE}");
    let templates = root.join(TEMPLATES);
    fs::create_dir_all(&templates).context("could not create the directory of templates")?;
    cache::copy_template(&templates, &name, &home.host("data"), |dir| {
        fill(&root, dir)
    })?;
    Ok((home, SERVER.into()))
}

/// What MySQL needs beyond the common arguments.
pub(super) fn arguments() -> Vec<String> {
    [
        // Debian's build insists on a directory that a chroot of nothing but the server lacks.
        "--secure-file-priv=",
        "--mysqlx=OFF",
        "--gtid-mode=ON",
        "--enforce-gtid-consistency=ON",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn fill(root: &Path, dir: &Path) -> anyhow::Result<()> {
    let name = dir
        .file_name()
        .context("a directory of the cache has a name")?;
    let inside = Path::new("/").join(TEMPLATES).join(name);
    let sql = format!("{}DROP USER root@localhost;\n", super::admin_sql());
    fs::write(dir.join("admin.sql"), sql).context("could not write admin.sql")?;
    super::run(
        in_chroot(root)
            .args([
                "--no-defaults",
                "--secure-file-priv=",
                "--initialize-insecure",
                "--user=root",
            ])
            .arg(format!("--datadir={}", inside.join("data").display()))
            .arg(format!(
                "--init-file={}",
                inside.join("admin.sql").display()
            )),
    )?;
    // Each copy makes up a server_uuid of its own.
    fs::remove_file(dir.join("data/auto.cnf")).context("could not remove auto.cnf")
}

fn in_chroot(root: &Path) -> Command {
    let mut command = Command::new("chroot");
    command.arg(root).arg(SERVER);
    command
}
