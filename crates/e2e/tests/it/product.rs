//! Programs of the workspace as processes.

use std::{path::Path, time::Duration};

use e2e::{product::Process, wait};

const SOON: Duration = Duration::from_secs(10);

fn shell(script: &str) -> Process {
    Process::spawn(
        Path::new("/bin/sh"),
        &["-c", script],
        &[("GREETING", "hello")],
    )
    .unwrap()
}

#[tokio::test]
async fn a_process_has_its_settings_a_log_and_an_exit_code() {
    let process = shell("echo $GREETING; echo err >&2; exit 64");
    assert_eq!(process.wait_exit(SOON).await.unwrap().code(), Some(64));
    assert_eq!(process.log(), "hello\nerr\n");
    assert_eq!(process.pid(), None);
    process.start_again().unwrap();
    process.wait_exit(SOON).await.unwrap();
    assert_eq!(process.log(), "hello\nerr\nhello\nerr\n");
}

#[tokio::test]
async fn a_process_sees_nothing_of_the_callers_environment() {
    let process = shell("echo \"${HOME-none} ${CARGO-none}\"");
    process.wait_exit(SOON).await.unwrap();
    assert_eq!(process.log(), "none none\n");
}

#[tokio::test]
async fn terminate_and_kill_end_a_process_each_in_its_way() {
    let process = shell("trap 'exit 3' TERM; echo up; while :; do sleep 0.01; done");
    wait::until("the trap to be set", SOON, async || process.log() == "up\n").await;
    process.terminate().unwrap();
    assert_eq!(process.wait_exit(SOON).await.unwrap().code(), Some(3));
    process.start_again().unwrap();
    let pid = process.pid().unwrap();
    assert!(crate::owner::alive(pid));
    process.kill().unwrap();
    assert!(!crate::owner::alive(pid));
}

#[tokio::test]
async fn a_process_that_does_not_end_fails_the_wait_with_its_log() {
    let process = shell("echo stuck here; exec sleep 60");
    wait::until("its log", SOON, async || !process.log().is_empty()).await;
    let ended = process.wait_exit(Duration::from_millis(100)).await;
    let err = ended.expect_err("it sleeps");
    assert!(format!("{err:#}").contains("stuck here"), "{err:#}");
    let pid = process.pid().unwrap();
    drop(process);
    assert!(!crate::owner::alive(pid));
}

#[test]
fn a_program_that_is_not_built_is_named() {
    let err = e2e::product::binary("no-such-program").expect_err("it does not exist");
    assert!(
        err.to_string().contains("cargo build -p no-such-program"),
        "{err}"
    );
}

#[test]
fn a_program_of_this_build_is_found() {
    assert_eq!(
        e2e::product::binary("e2e").unwrap().canonicalize().unwrap(),
        Path::new(env!("CARGO_BIN_EXE_e2e")).canonicalize().unwrap()
    );
}
