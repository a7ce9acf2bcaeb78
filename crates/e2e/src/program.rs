//! Finding the programs of installed packages.

use std::path::PathBuf;

use anyhow::Context as _;

/// Where Debian and its kin put servers, whether or not the caller's PATH has it.
const DIRECTORIES: [&str; 6] = [
    "/usr/sbin",
    "/usr/bin",
    "/usr/local/sbin",
    "/usr/local/bin",
    "/sbin",
    "/bin",
];

/// The path of a program, or an error that names the Debian package it is in.
pub(crate) fn find(program: &str, package: &str) -> anyhow::Result<PathBuf> {
    DIRECTORIES
        .iter()
        .map(|dir| PathBuf::from(dir).join(program))
        .find(|path| path.exists())
        .with_context(|| {
            format!(
                "{program} is not installed: `make test` and `make demo` install it on Debian and \
                 Ubuntu (package {package}); elsewhere install it yourself or use `make up`"
            )
        })
}
