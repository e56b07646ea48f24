//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use super::fleet::MOST_AGENTS;

const EXAMPLES: &str = "\
Examples:
  lockstep-load --quick                                          a few seconds, to see that everything works
  lockstep-load --pipelines 1 --hosts 3 --every 300ms --for 60s  overhead of a round on an idle system
  lockstep-load --pipelines 1 --hosts 64 --every 1s --for 60s
  taskset -c 1 lockstep-load --coordinator-cpus 0 --pipelines 1000 --hosts 16 --every 60s --for 180s --json load.json
  lockstep-load --pipelines 100 --replicas 2 -- --lease 2s --renew-every 500ms

The coordinator is the binary beside this one: build both with `cargo build --release -p lockstep-bench -p lockstep-coordinator`.
A private Postgres, the S3 server and all agents are started here; the coordinator is a process of its own and the only one that is measured.
Words after -- go to the coordinator.

Exit status: 0 every round was committed, whatever the figures; 1 something failed; 2 wrong usage.";

/// Puts a coordinator under many pipelines with simulated agents and shows what coordination costs
///
/// Every agent has an address and a connection of its own and speaks real gRPC; parts and commits are real and are verified at the end. Prints the
/// overhead of a round beyond its slowest agent, database transactions, RPCs and S3 requests a round, and what the coordinator's process takes.
#[derive(Debug, Clone, Parser)]
#[command(name = "lockstep-load", version, after_help = EXAMPLES)]
pub struct Args {
    /// Pipelines [default: 100]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pipelines: Option<u32>,

    /// Hosts of each pipeline [default: 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    hosts: Option<u32>,

    /// How often each pipeline is pushed; all of them evenly spread [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    every: Option<Duration>,

    /// How long pushes are started [default: 120s]
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    lasts: Option<Duration>,

    /// What an agent's transfer takes, half more or less [default: 50ms]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    transfer: Option<Duration>,

    /// Coordinators over the one database [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    replicas: Option<u32>,

    /// Defaults for a few seconds: 4 pipelines of 3 hosts, pushed each second
    #[arg(long)]
    quick: bool,

    /// Binds the coordinators to these CPUs, as `taskset -c` reads them
    #[arg(long, value_name = "LIST")]
    pub(super) coordinator_cpus: Option<String>,

    /// Also write the figures to this file, as one JSON object
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,

    /// Where objects and logs lie while this runs, in a fresh folder below it [default: /dev/shm, else the temporary folder]
    #[arg(long, value_name = "DIR")]
    pub(super) dir: Option<PathBuf>,

    /// Where lockstep-coordinator is [default: beside this program]
    #[arg(long, value_name = "DIR")]
    pub(super) bin_dir: Option<PathBuf>,

    /// Further flags of the coordinators
    #[arg(last = true, value_name = "FLAG")]
    pub(super) coordinator: Vec<OsString>,
}

/// More than nothing, at most a day.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let units = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let found = units.iter().find_map(|(unit, seconds)| {
        let number: f64 = text.strip_suffix(unit)?.parse().ok()?;
        Some(number * seconds)
    });
    match found {
        Some(seconds) if seconds > 0.0 && seconds <= 86_400.0 => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("a number with ms, s, m or h behind it, more than 0 and at most a day".to_owned()),
    }
}

/// What was asked for, defaults filled in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scope {
    /// Pipelines.
    pub pipelines: u32,
    /// Hosts of each.
    pub hosts: u32,
    /// Between two pushes of one pipeline.
    pub every: Duration,
    /// For how long pushes are started.
    pub lasts: Duration,
    /// An agent's transfer, in the middle.
    pub transfer: Duration,
    /// Coordinators.
    pub replicas: u32,
    /// Less is waited for, so that Postgres's own counters are left out.
    pub quick: bool,
}

impl Args {
    /// What was asked for.
    ///
    /// # Errors
    ///
    /// Together the numbers are too much.
    pub fn scope(&self) -> anyhow::Result<Scope> {
        let seconds = Duration::from_secs;
        let (pipelines, hosts, every, lasts) =
            if self.quick { (4, 3, seconds(1), seconds(3)) } else { (100, 16, seconds(60), seconds(120)) };
        let scope = Scope {
            pipelines: self.pipelines.unwrap_or(pipelines),
            hosts: self.hosts.unwrap_or(hosts),
            every: self.every.unwrap_or(every),
            lasts: self.lasts.unwrap_or(lasts),
            transfer: self.transfer.unwrap_or(Duration::from_millis(50)),
            replicas: self.replicas.unwrap_or(1),
            quick: self.quick,
        };
        let agents = u64::from(scope.pipelines) * u64::from(scope.hosts);
        anyhow::ensure!(agents <= u64::from(MOST_AGENTS), "{agents} agents are more than {MOST_AGENTS}");
        Ok(scope)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn scope(line: &str) -> Result<Scope, String> {
        let words = std::iter::once("lockstep-load").chain(line.split_whitespace());
        let args = Args::try_parse_from(words).map_err(|error| error.to_string())?;
        args.scope().map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn what_is_given_overrides_a_preset() {
        let quick = scope("--quick --hosts 5 --every 250ms").unwrap();
        assert_eq!((quick.pipelines, quick.hosts, quick.every), (4, 5, Duration::from_millis(250)));
        let full = scope("--pipelines 1000 --for 3m").unwrap();
        assert_eq!((full.hosts, full.every, full.lasts), (16, Duration::from_secs(60), Duration::from_secs(180)));
    }

    #[test]
    fn wrong_flags_say_what_would_be_right() {
        for (line, hint) in [
            ("--pipelines 0", "1..=100000"),
            ("--every 5", "ms, s, m or h"),
            ("--every 0s", "more than 0"),
            ("--for 2d", "at most a day"),
            ("--pipelines 100000 --hosts 4096", "more than"),
        ] {
            let error = scope(line).unwrap_err();
            assert!(error.contains(hint), "{line}: {error}");
        }
    }
}
