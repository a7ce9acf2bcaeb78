//! The simulator as a test: the regression seeds, then `SEEDS` more.

use crate::faults::FaultSet;
use crate::run::{How, attempt};
use crate::trace::Wanted;

const REGRESSIONS: &str = include_str!("seeds.txt");

/// Half of the seeds, so that two threads run them all.
fn run(half: u64) {
    let regressions = REGRESSIONS
        .lines()
        .filter_map(|line| line.split(' ').next()?.parse().ok());
    let more = std::env::var("SEEDS").map_or(30, |seeds| seeds.parse().expect("SEEDS is a number"));
    let how = How {
        steps: 3_000_000,
        spins: false,
    };
    for seed in regressions.chain(1..=more).filter(|seed| seed % 2 == half) {
        let (_, failure) = attempt(seed, FaultSet::draw(seed), how, Wanted::Nothing);
        if let Some(failure) = failure {
            panic!("seed {seed}: {:?}", failure.violation);
        }
    }
}

#[test]
fn no_even_seed_breaks_a_rule() {
    run(0);
}

#[test]
fn no_odd_seed_breaks_a_rule() {
    run(1);
}
