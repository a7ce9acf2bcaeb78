//! How often a token may be wrong, at the login or in a request to the API, before an address has to
//! wait. Pure: the time is an argument.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::ConnectInfo;
use axum::http::Extensions;

/// Failures in a row that an address has at once.
const BURST: u32 = 10;
/// One more is allowed after this time.
const REFILL: Duration = Duration::from_secs(6);
/// Addresses remembered; one more forgets the one that failed longest ago.
const ADDRESSES_MAX: usize = 1024;

struct Failures {
    count: u32,
    last: Instant,
}

/// Wrong tokens by address, at both doors together. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Guesses(Arc<Mutex<Limit>>);

impl Guesses {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Limit> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a request comes from; without a peer, as in a test without a socket, from nowhere.
pub(crate) fn peer(extensions: &Extensions) -> IpAddr {
    extensions
        .get::<ConnectInfo<SocketAddr>>()
        .map_or(IpAddr::from([0, 0, 0, 0]), |info| info.0.ip())
}

/// Wrong tokens by address.
#[derive(Default)]
pub(crate) struct Limit(HashMap<IpAddr, Failures>);

impl Limit {
    /// How long this address has to wait before it may try, if it has to.
    pub(crate) fn wait(&self, from: IpAddr, now: Instant) -> Option<Duration> {
        let failures = self.0.get(&from)?;
        let past = now.saturating_duration_since(failures.last);
        let count = left(failures.count, past);
        (count >= BURST).then(|| REFILL * (count - BURST + 1))
    }

    /// Counts a failure.
    pub(crate) fn failed(&mut self, from: IpAddr, now: Instant) {
        if self.0.len() >= ADDRESSES_MAX && !self.0.contains_key(&from) {
            let oldest = self.0.iter().min_by_key(|(_, failures)| failures.last);
            if let Some(address) = oldest.map(|(&address, _)| address) {
                self.0.remove(&address);
            }
        }
        let failures = self.0.entry(from).or_insert(Failures {
            count: 0,
            last: now,
        });
        let past = now.saturating_duration_since(failures.last);
        failures.count = left(failures.count, past) + 1;
        failures.last = now;
    }

    /// Forgets the failures of an address that has shown a token.
    pub(crate) fn succeeded(&mut self, from: IpAddr) {
        self.0.remove(&from);
    }
}

fn left(count: u32, past: Duration) -> u32 {
    let forgiven = past.as_secs() / REFILL.as_secs();
    count.saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn address(n: usize) -> IpAddr {
        IpAddr::from(u32::try_from(n).unwrap().to_be_bytes())
    }

    #[test]
    fn after_ten_failures_an_address_waits_and_others_do_not() {
        let (mut limit, now) = (Limit::default(), Instant::now());
        for _ in 0..BURST {
            assert_eq!(limit.wait(HERE, now), None);
            limit.failed(HERE, now);
        }
        assert_eq!(limit.wait(HERE, now), Some(REFILL));
        assert_eq!(limit.wait(address(1), now), None);
        assert_eq!(limit.wait(HERE, now + REFILL), None);
        limit.failed(HERE, now + REFILL);
        assert_eq!(limit.wait(HERE, now + REFILL), Some(REFILL));
    }

    #[test]
    fn a_login_forgives_the_failures_before_it() {
        let (mut limit, now) = (Limit::default(), Instant::now());
        for _ in 0..BURST {
            limit.failed(HERE, now);
        }
        limit.succeeded(HERE);
        assert_eq!(limit.wait(HERE, now), None);
    }

    #[test]
    fn a_thousand_addresses_are_remembered() {
        let (mut limit, now) = (Limit::default(), Instant::now());
        for n in 0..2 * ADDRESSES_MAX {
            let millis = Duration::from_millis(u64::try_from(n).unwrap());
            limit.failed(address(n), now + millis);
        }
        assert_eq!(limit.0.len(), ADDRESSES_MAX);
        assert!(!limit.0.contains_key(&address(0)));
        assert!(limit.0.contains_key(&address(2 * ADDRESSES_MAX - 1)));
    }
}
