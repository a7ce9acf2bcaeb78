//! A wall clock that a test can set, for the servers and programs it starts.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::Context as _;

use crate::owner::Owner;

/// What Debian's package `libfaketime` holds: it stands between a program and the system's clock.
const LIBRARY: &str = "faketime/libfaketimeMT.so.1";

/// The wall clock of every process that was started with [`Clock::env`]. What measures durations
/// (the monotonic clock) is left alone, as it is when a machine's clock is set.
#[derive(Debug)]
pub struct Clock {
    library: PathBuf,
    offset: PathBuf,
}

impl Clock {
    /// A clock that is right.
    pub fn new() -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let clock = Self {
            library: library()?,
            offset: Owner::get()?.root().join(format!("clock-{number}")),
        };
        clock.set(0)?;
        Ok(clock)
    }

    /// The environment of a process that is to go by it.
    pub fn env(&self) -> Vec<(String, String)> {
        [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", self.offset.display().to_string()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            // Else its waits for a condition end at once, with a C library of today, and MySQL spins.
            ("FAKETIME_FORCE_MONOTONIC_FIX", "0".to_owned()),
            // The file is looked at once a second.
            ("FAKETIME_CACHE_DURATION", "1".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }

    /// Sets it so many seconds before or behind the right time; seen within a second.
    pub fn set(&self, seconds: i64) -> anyhow::Result<()> {
        // Never half-written for a reader.
        let new = self.offset.with_extension("new");
        fs::write(&new, format!("{seconds:+}\n"))
            .and_then(|()| fs::rename(&new, &self.offset))
            .with_context(|| format!("could not write {}", self.offset.display()))
    }
}

fn library() -> anyhow::Result<PathBuf> {
    let places = ["x86_64-linux-gnu", "aarch64-linux-gnu"]
        .map(|machine| Path::new("/usr/lib").join(machine).join(LIBRARY));
    let found = places.into_iter().find(|path| path.exists());
    found.with_context(|| format!("there is no {LIBRARY}: install the package libfaketime"))
}
