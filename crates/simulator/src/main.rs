//! Runs the relay's engine in a simulated world: databases, binlogs, brokers, operators and processes
//! that fail, in virtual time, from one seed. What the engine does is checked against the contract.
#![allow(
    clippy::print_stdout,
    reason = "a program for a terminal: its results go to standard output"
)]

mod coverage;
mod faults;
mod queue;
mod rng;
mod run;
mod scenario;
mod trace;
mod world;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

use crate::coverage::Coverage;
use crate::faults::FaultSet;
use crate::run::{Failure, How, attempt, shorten};
use crate::trace::Wanted;

/// Seeds that have found something, each with a line of comment.
const SEEDS: &str = include_str!("../seeds.txt");

/// Simulates the outbox relay's engine.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Seeds in a row, beside the regression seeds.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// Only this seed.
    #[arg(long, env = "SEED")]
    seed: Option<u64>,
    /// The first seed of the row.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// No new seed begins after this time.
    #[arg(long)]
    seconds: Option<u64>,
    /// Happenings in the life of one seed, at most.
    #[arg(long, default_value_t = 3_000_000)]
    steps: u64,
    /// Tolerate an engine that wants ticks without time passing, to look for other failures.
    #[arg(long)]
    allow_spins: bool,
    /// Only these kinds of fault, by name, separated by commas, instead of those that a seed draws.
    #[arg(long, value_delimiter = ',')]
    faults: Option<Vec<String>>,
    /// Go on after a failure, and list the rules that were broken at the end.
    #[arg(long)]
    keep_going: bool,
    /// Print every event and command.
    #[arg(long)]
    verbose: bool,
    /// Fail if a variant or a kind of fault was never reached.
    #[arg(long)]
    require_coverage: bool,
}

impl Cli {
    fn faults(&self, seed: u64) -> FaultSet {
        let Some(names) = &self.faults else {
            return FaultSet::draw(seed);
        };
        let wanted = faults::Fault::ALL
            .iter()
            .filter(|fault| names.iter().any(|name| name == fault.name()));
        wanted.fold(FaultSet::default(), |set, fault| set.with(*fault))
    }

    fn how(&self) -> How {
        How {
            steps: self.steps,
            spins: self.allow_spins,
        }
    }
}

/// Seeds of the regression file: the first word of each line that is no comment.
fn regressions() -> impl Iterator<Item = u64> {
    let seed = |line: &str| {
        line.split_whitespace()
            .next()
            .and_then(|word| word.parse().ok())
    };
    SEEDS.lines().filter_map(seed)
}

fn report(failure: &Failure, cli: &Cli) {
    let Failure {
        seed, violation, ..
    } = failure;
    println!(
        "\nFAILED seed {seed}: {}\n  {}",
        violation.rule, violation.text
    );
    let (short, faults) = shorten(failure, cli.how());
    let names: Vec<&str> = faults.iter().map(|fault| fault.name()).collect();
    println!(
        "{:?}",
        crate::scenario::Scenario::new(*seed, FaultSet::default()).settings
    );
    println!("\nneeded faults: {}", names.join(" "));
    println!(
        "with these alone: {}\n  {}",
        short.violation.rule, short.violation.text
    );
    println!("\nthe last steps:");
    for line in &short.lines {
        println!("{line}");
    }
    println!("\nagain: SEED={seed} make simulate");
}

fn finish(coverage: &Coverage, seeds: u64, began: Instant, cli: &Cli) -> bool {
    let seconds = began.elapsed().as_secs_f64();
    println!("\ncoverage:");
    for line in coverage.table() {
        println!("  {line}");
    }
    let minute = coverage.events as f64 / seconds * 60.0;
    println!(
        "{seeds} seeds, {} events, {minute:.0} events a minute",
        coverage.events
    );
    let missing = coverage.missing();
    if !missing.is_empty() {
        println!("never reached: {}", missing.join(", "));
    }
    missing.is_empty() || !cli.require_coverage
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    std::panic::set_hook(Box::new(|_| {}));
    let seeds: Vec<u64> = match cli.seed {
        Some(seed) => vec![seed],
        None => regressions()
            .chain(cli.from..cli.from + cli.seeds)
            .collect(),
    };
    let began = Instant::now();
    let mut said = began;
    let mut coverage = Coverage::new();
    let mut failed: Vec<(u64, &'static str)> = Vec::new();
    let mut done = 0;
    for seed in seeds {
        if cli
            .seconds
            .is_some_and(|seconds| began.elapsed() > Duration::from_secs(seconds))
        {
            break;
        }
        let wanted = if cli.verbose {
            Wanted::All
        } else {
            Wanted::Nothing
        };
        let (counts, failure) = attempt(seed, cli.faults(seed), cli.how(), wanted);
        coverage.add(&counts);
        done += 1;
        if let Some(failure) = failure {
            if !cli.keep_going {
                report(&failure, &cli);
                return ExitCode::FAILURE;
            }
            println!(
                "seed {seed}: {} ({})",
                failure.violation.rule,
                failure.violation.text.chars().take(150).collect::<String>()
            );
            failed.push((seed, failure.violation.rule));
        }
        if said.elapsed() > Duration::from_secs(5) {
            said = Instant::now();
            let minute = coverage.events as f64 / began.elapsed().as_secs_f64() * 60.0;
            println!(
                "{done} seeds, {} events, {minute:.0} a minute",
                coverage.events
            );
        }
    }
    let covered = finish(&coverage, done, began, &cli);
    println!("{} seeds failed", failed.len());
    if failed.is_empty() && covered {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
