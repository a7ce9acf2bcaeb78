//! Servers must not outlive the process that started them.

use std::{
    io::{BufRead as _, BufReader},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use e2e::wait;
use rustix::process::{Pid, Signal, kill_process};

/// By what a reaper knows the processes of its owner.
const MARK: &str = "OUTBOX_RELAY_E2E_OWNER";

/// Whether a process exists and is not merely waiting to be reaped.
pub(crate) fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .is_some_and(|rest| rest.starts_with(" Z"))
    })
}

/// Starts `e2e serve` for these servers and reads each one's process id and directory.
fn serve(servers: &[&str]) -> (Child, Vec<(u32, PathBuf)>) {
    serve_owned(servers, "nobody")
}

/// [`serve`] by a process that is itself owned, by `outer`.
fn serve_owned(servers: &[&str], outer: &str) -> (Child, Vec<(u32, PathBuf)>) {
    let mut owner = Command::new(env!("CARGO_BIN_EXE_e2e"))
        .arg("serve")
        .args(servers)
        .env(MARK, outer)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(owner.stdout.take().unwrap())
        .lines()
        .take(servers.len());
    let started: Vec<(u32, PathBuf)> = lines
        .map(|line| {
            let line = line.unwrap();
            let mut words = line.split(' ').skip(1);
            (
                words.next().unwrap().parse().unwrap(),
                words.next().unwrap().into(),
            )
        })
        .collect();
    assert_eq!(started.len(), servers.len(), "not all servers started");
    (owner, started)
}

async fn gone(started: &[(u32, PathBuf)]) {
    for (pid, dir) in started {
        wait::until(
            "the server to be gone",
            Duration::from_secs(20),
            async || !alive(*pid) && !dir.exists() && !parent(dir).exists(),
        )
        .await;
    }
}

/// The directory of all servers of one owner.
fn parent(dir: &Path) -> &Path {
    dir.parent().unwrap()
}

async fn ends_with(signal: Signal) {
    let mut servers = vec!["mariadb", "rabbit"];
    if e2e::cache::mysql_root().is_ok() {
        servers.push("mysql");
    }
    if e2e::cache::rabbitmq4_root().is_ok() {
        servers.push("rabbit4");
    }
    let (mut owner, started) = serve(&servers);
    for (pid, dir) in &started {
        assert!(alive(*pid) && dir.exists());
    }
    kill_process(Pid::from_child(&owner), signal).unwrap();
    let ended = owner.wait().unwrap();
    assert!(ended.success() || ended.signal().is_some(), "{ended}");
    gone(&started).await;
}

#[tokio::test]
async fn servers_are_gone_after_their_owner_was_killed() {
    ends_with(Signal::KILL).await;
}

#[tokio::test]
async fn servers_are_gone_after_ctrl_c() {
    ends_with(Signal::INT).await;
}

#[tokio::test]
async fn servers_are_gone_after_the_owner_of_their_owner_was_killed() {
    let outer = format!("outer-{}", std::process::id());
    let (mut owner, started) = serve_owned(&["mariadb"], &outer);
    // What the outer owner's reaper does: it kills all that carry the outer mark.
    let mark = format!("{MARK}={outer}");
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let environ = std::fs::read(process.path().join("environ")).unwrap_or_default();
        let name = process.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.parse().ok())
            .and_then(Pid::from_raw);
        if let Some(pid) = pid
            && environ
                .split(|&byte| byte == 0)
                .any(|entry| entry == mark.as_bytes())
        {
            kill_process(pid, Signal::KILL).unwrap();
        }
    }
    assert_eq!(owner.wait().unwrap().signal(), Some(Signal::KILL.as_raw()));
    gone(&started).await;
}
