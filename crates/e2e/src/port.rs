//! Free TCP ports on 127.0.0.1 that stay free while a server is down between two starts.

use std::{
    collections::HashSet,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    net::{Ipv4Addr, TcpListener},
    sync::{LazyLock, Mutex, PoisonError},
};

/// Below the range from which Linux takes the local ports of outgoing connections: a port of that
/// range could be gone when a killed server wants it back.
const FIRST: u16 = 15_000;
const COUNT: u16 = 17_000;

/// A port nobody listens on and that this process was not given before.
pub fn free() -> anyhow::Result<u16> {
    static GIVEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..1_000 {
        // Random, so that two test processes that start together do not race for the same one.
        let random = RandomState::new().build_hasher().finish() % u64::from(COUNT);
        let port = FIRST + u16::try_from(random)?;
        if !given.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            given.insert(port);
            return Ok(port);
        }
    }
    anyhow::bail!("found no free port from {FIRST} on")
}
