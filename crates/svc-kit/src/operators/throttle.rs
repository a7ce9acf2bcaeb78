//! How many wrong tokens are answered one by one. Pure: the time is an argument.
//!
//! A right token never comes here, so nobody's guesses keep anybody else out.

use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Wrong tokens that an address, and all addresses together, have at once, and the time after which
/// each has one more.
#[derive(Clone, Copy, Debug)]
struct Budget {
    burst: u32,
    refill: Duration,
}

const ADDRESS: Budget = Budget {
    burst: 10,
    refill: Duration::from_secs(6),
};
const EVERYBODY: Budget = Budget {
    burst: 60,
    refill: Duration::from_secs(1),
};
/// Addresses share this many counters by their hash: the memory is the same for any number of them.
const COUNTERS: usize = 1024;

/// When the budget is whole again; in the past, or never touched, it is whole.
type Counter = Option<Instant>;

/// Wrong tokens, by address and altogether.
#[derive(Debug)]
pub(super) struct Throttle {
    hasher: RandomState,
    counters: Mutex<(Counter, Box<[Counter; COUNTERS]>)>,
}

impl Default for Throttle {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            counters: Mutex::new((None, Box::new([None; COUNTERS]))),
        }
    }
}

impl Throttle {
    /// Counts a wrong token.
    ///
    /// # Errors
    /// The budget is used up: the time until one more is allowed. Such a token is not counted.
    pub(super) fn wrong(&self, from: IpAddr, now: Instant) -> Result<(), Duration> {
        let slot = usize::try_from(self.hasher.hash_one(network(from)) % COUNTERS as u64)
            .unwrap_or_default();
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let (everybody, addresses) = &mut *counters;
        let own = ADDRESS.take(addresses[slot], now);
        let all = EVERYBODY.take(*everybody, now);
        match (own, all) {
            (Ok(own), Ok(all)) => {
                addresses[slot] = Some(own);
                *everybody = Some(all);
                Ok(())
            }
            (own, all) => Err(own.err().max(all.err()).unwrap_or_default()),
        }
    }
}

impl Budget {
    /// The counter with one more wrong token, or the time until it may have one.
    fn take(self, counter: Counter, now: Instant) -> Result<Instant, Duration> {
        let whole = counter.map_or(now, |whole| whole.max(now)) + self.refill;
        let over = whole.saturating_duration_since(now + self.refill * self.burst);
        if over.is_zero() { Ok(whole) } else { Err(over) }
    }
}

/// An IPv4 address, or the /64 of an IPv6 address, which one host has to itself.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn address(n: u32) -> IpAddr {
        IpAddr::from(n.to_be_bytes())
    }

    #[test]
    fn after_ten_wrong_tokens_an_address_waits_six_seconds_for_each_further_one() {
        let (throttle, now) = (Throttle::default(), Instant::now());
        for _ in 0..10 {
            assert_eq!(throttle.wrong(HERE, now), Ok(()));
        }
        let second = Duration::from_secs(1);
        for _ in 0..300 {
            assert_eq!(throttle.wrong(HERE, now), Err(6 * second));
        }
        assert_eq!(throttle.wrong(HERE, now + 2 * second), Err(4 * second));
        assert_eq!(throttle.wrong(HERE, now + 6 * second), Ok(()));
        assert_eq!(throttle.wrong(HERE, now + 6 * second), Err(6 * second));
        let later = now + 600 * second;
        let allowed = (0..300).filter(|_| throttle.wrong(HERE, later).is_ok());
        assert_eq!(allowed.count(), 10);
    }

    #[test]
    fn a_hundred_thousand_addresses_together_have_sixty() {
        let (throttle, now) = (Throttle::default(), Instant::now());
        let from = |n| throttle.wrong(address(n), now);
        assert_eq!((0..100_000).filter(|&n| from(n).is_ok()).count(), 60);
        let wait = throttle.wrong(address(1), now).unwrap_err();
        assert!(wait >= Duration::from_secs(1), "{wait:?}");
    }

    #[test]
    fn the_addresses_of_one_ipv6_network_share_a_budget() {
        let network = |text: &str| network(text.parse().unwrap());
        assert_eq!(network("2001:db8:1:2::1"), network("2001:db8:1:2:f::9"));
        assert_ne!(network("2001:db8:1:2::1"), network("2001:db8:1:3::1"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
        assert_ne!(network("::ffff:192.0.2.1"), network("192.0.2.2"));
    }
}
