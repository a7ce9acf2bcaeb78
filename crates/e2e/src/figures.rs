//! What a long test measured, kept for `crates/e2e/LONG.md`.

use std::{
    env, fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

/// Prints a figure and appends it to `target/long/figures.md` as a row of a table.
///
/// # Panics
/// When the file can't be written: a figure that is lost has to be measured again.
pub fn record(name: &str, value: &str) {
    let written = append(name, value);
    // A closed standard error is no reason to fail a test.
    drop(writeln!(std::io::stderr(), "{name}: {value}"));
    if let Err(err) = written {
        panic!("could not keep the figure {name}: {err:#}");
    }
}

fn append(name: &str, value: &str) -> anyhow::Result<()> {
    let path = file()?;
    fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
    let mut file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("could not open {}", path.display()))?;
    // One write, so that tests beside each other do not mix their lines.
    file.write_all(format!("| {name} | {value} |\n").as_bytes())?;
    Ok(())
}

/// Beside the build's own directories, whose name is in the path of the caller's program file.
fn file() -> anyhow::Result<PathBuf> {
    let program = env::current_exe().context("this process has no program file")?;
    let target = program
        .ancestors()
        .find(|dir| dir.join("CACHEDIR.TAG").exists())
        .with_context(|| format!("{} is in no target directory", program.display()))?;
    Ok(target.join("long/figures.md"))
}
