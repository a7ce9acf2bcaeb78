//! What a process has used, as the kernel counts it.

use std::fs;

use anyhow::Context as _;

/// Ticks a second of the times in /proc: the same on every Linux.
const TICKS: f64 = 100.0;

/// Processor time of a process so far, its threads that are gone included.
pub(crate) fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("could not look at process {pid}"))?;
    // The name, in brackets, may hold spaces; user and system time are the 14th and 15th field.
    let (_, fields) = stat
        .rsplit_once(") ")
        .context("a stat file without a name")?;
    let ticks: f64 = fields
        .split(' ')
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<f64>().ok())
        .sum();
    Ok(ticks / TICKS)
}

/// Resident memory of a process in MiB.
pub(crate) fn resident_mib(pid: u32) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("could not look at process {pid}"))?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .context("a process without memory")?;
    Ok(kib.trim().parse::<f64>()? / 1024.0)
}
