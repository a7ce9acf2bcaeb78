//! Who starts servers owns them: when the owning process ends, however it ends, its servers are
//! killed and its directories removed.
//!
//! A destructor is not enough, because a process that is killed runs none. So the first server
//! starts a reaper: a shell that reads a pipe whose other end only this process holds. When the
//! pipe closes, the reaper kills every process that carries this owner's mark in its environment
//! (children and grandchildren inherit it, and a process id that was used again does not have it)
//! and removes the directories it was informed of.

use std::{
    fs,
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{ChildStdin, Command, Stdio},
    sync::{Mutex, OnceLock, PoisonError},
};

use anyhow::{Context as _, ensure};

/// Environment variable by which the reaper knows a process as its owner's.
const MARK: &str = "OUTBOX_RELAY_E2E_OWNER";

/// Reads directories, one a line, until the owner is gone; then kills and removes.
const REAPER: &str = r#"
trap '' INT TERM HUP
mark="$1"
set --
while IFS= read -r dir; do set -- "$@" "$dir"; done
rounds=0
quiet=0
# Twice nothing, because a process that was just being started has no mark yet.
while [ "$quiet" -lt 2 ] && [ "$rounds" -lt 500 ]; do
  files=$(grep -lszxF "$mark" /proc/[0-9]*/environ)
  if [ -z "$files" ]; then quiet=$((quiet + 1)); else quiet=0; fi
  for file in $files; do
    pid=${file#/proc/}
    kill -9 "${pid%/environ}" 2>/dev/null
  done
  rounds=$((rounds + 1))
  sleep 0.02
done
rm -rf --one-file-system "$@"
"#;

/// This process as an owner of servers.
pub(crate) struct Owner {
    token: String,
    root: PathBuf,
    reaper: Mutex<ChildStdin>,
}

impl Owner {
    /// The one owner of this process; its reaper is started at the first call.
    pub(crate) fn get() -> anyhow::Result<&'static Self> {
        static OWNER: OnceLock<Owner> = OnceLock::new();
        static STARTING: Mutex<()> = Mutex::new(());
        let _one_at_a_time = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(owner) = OWNER.get() {
            return Ok(owner);
        }
        let owner = Self::start().context("could not start the reaper of throwaway servers")?;
        Ok(OWNER.get_or_init(|| owner))
    }

    fn start() -> anyhow::Result<Self> {
        ensure!(
            Path::new("/proc/self/environ").exists(),
            "throwaway servers need Linux with /proc mounted; elsewhere use `make up`"
        );
        let token = format!("{}-{}", std::process::id(), uuid::Uuid::now_v7().simple());
        let root = std::env::temp_dir().join(format!("outbox-relay-{token}"));
        let mut reaper = Command::new("sh")
            .args(["-c", REAPER, "reaper"])
            .arg(format!("{MARK}={token}"))
            .current_dir("/")
            // An owner may itself be owned, as the demo is by its test: the outer reaper must not
            // kill the inner one, which has its own servers to see to.
            .env_remove(MARK)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C at the terminal must not reach it before its owner has ended.
            .process_group(0)
            .spawn()
            .context("could not start sh")?;
        let stdin = reaper
            .stdin
            .take()
            .context("the reaper has no standard input")?;
        let owner = Self {
            token,
            root,
            reaper: Mutex::new(stdin),
        };
        owner.create_dir(&owner.root)?;
        Ok(owner)
    }

    /// The directory of this process's servers and logs.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A name no other owner has, fit for a file name.
    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    /// The mark every process of this owner carries in its environment.
    pub(crate) fn mark(&self) -> (&'static str, &str) {
        (MARK, &self.token)
    }

    /// Creates a directory that goes when this process does. The reaper hears of it first.
    pub(crate) fn create_dir(&self, dir: &Path) -> anyhow::Result<()> {
        let mut reaper = self.reaper.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(reaper, "{}", dir.display()).context("the reaper of throwaway servers is gone")?;
        fs::create_dir_all(dir).with_context(|| format!("could not create {}", dir.display()))
    }
}
