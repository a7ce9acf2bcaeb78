//! Real MySQL from the cache directory.
//!
//! It is started through the dynamic loader of its own Debian root, with the libraries of that
//! root: unlike a chroot this needs no root's rights, and its data can lie anywhere.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

use super::Program;
use crate::cache;

/// The server's program and the data directory to copy.
pub(super) fn prepare() -> anyhow::Result<(Program, cache::Template)> {
    let program = program(&cache::mysql_root()?)?;
    let template = cache::template(&mut program.command(), |dir| fill(&program, dir))?;
    Ok((program, template))
}

/// What MySQL needs beyond the common arguments.
pub(super) fn arguments() -> Vec<String> {
    [
        // Debian's build insists on a directory that only its own package has.
        "--secure-file-priv=",
        "--mysqlx=OFF",
        "--gtid-mode=ON",
        "--enforce-gtid-consistency=ON",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn fill(program: &Program, dir: &Path) -> anyhow::Result<()> {
    let sql = format!("{}DROP USER root@localhost;\n", super::admin_sql());
    fs::write(dir.join("admin.sql"), sql).context("could not write admin.sql")?;
    super::run(
        program
            .command()
            .args(["--secure-file-priv=", "--initialize-insecure"])
            .args(super::root_arg())
            .arg(format!("--datadir={}", dir.join("data").display()))
            .arg(format!("--init-file={}", dir.join("admin.sql").display())),
    )?;
    // Each copy makes up a server_uuid of its own.
    fs::remove_file(dir.join("data/auto.cnf")).context("could not remove auto.cnf")
}

fn program(root: &Path) -> anyhow::Result<Program> {
    let (libraries, loader) = loader(root)?;
    let text = |path: PathBuf| path.display().to_string();
    let usr = root.join("usr");
    Ok(Program {
        path: loader,
        args: vec![
            "--library-path".to_owned(),
            text(libraries),
            text(usr.join("sbin/mysqld")),
            "--no-defaults".to_owned(),
            format!("--lc-messages-dir={}", text(usr.join("share/mysql"))),
            format!(
                "--character-sets-dir={}",
                text(usr.join("share/mysql/charsets"))
            ),
            format!("--plugin-dir={}", text(usr.join("lib/mysql/plugin"))),
        ],
    })
}

/// The directory of the root's libraries, such as `usr/lib/x86_64-linux-gnu`, and the dynamic
/// loader in it.
fn loader(root: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    let is_named = |path: &Path, test: fn(&str) -> bool| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(test)
    };
    for libraries in entries(&root.join("usr/lib"))? {
        if is_named(&libraries, |name| name.contains("-linux-gnu")) {
            let loader = entries(&libraries)?
                .into_iter()
                .find(|path| is_named(path, |name| name.starts_with("ld-linux")));
            if let Some(loader) = loader {
                return Ok((libraries, loader));
            }
        }
    }
    bail!(
        "{} has no dynamic loader; remove it to fetch it anew",
        root.display()
    )
}

fn entries(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let read = || {
        fs::read_dir(dir)?
            .map(|entry| Ok(entry?.path()))
            .collect::<std::io::Result<_>>()
    };
    read().with_context(|| format!("could not read {}", dir.display()))
}

impl Program {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.args(&self.args);
        command
    }
}
