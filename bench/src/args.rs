//! The command line.

use std::path::PathBuf;

use clap::Parser;

use crate::plan::{DataSet, Operation, Tool};

const EXAMPLES: &str = "\
Examples:
  lockstep-bench                                   everything, three runs each: half an hour or more
  lockstep-bench --quick                           about a minute: A, B and C at an eighth, against s5cmd and curl
  lockstep-bench --data-set A,B --tools lockstep,s5cmd --runs 5 --json figures.json
  lockstep-bench --data-set B --operations push --latency 30 --tools lockstep,s5cmd,s5cmd-16
  lockstep-bench --data-set D --operations push,pull --tools lockstep,rclone

Coordinator and agent are the binaries beside this one: build all with `cargo build --release --workspace`. Peers are
found where scripts/ensure-bench-peers.sh puts them (~/.cache/lockstep/peers), else on PATH; missing ones are named and left out.

Everything lies in /dev/shm if there is room. Each run of a tool begins on an empty prefix; runs alternate between the tools.
What a pull brought is compared byte for byte, by digest.

Exit status: 0 all went well, whatever the figures; 1 something failed or arrived different; 2 wrong usage.";

/// Measures Lockstep beside other movers of files, on one S3 server and the same data
///
/// Prints medians of wall time, CPU time, memory, requests and bytes for each data set and operation, the ratio to each
/// peer, and which of the project's targets are met.
#[derive(Debug, Clone, Parser)]
#[command(name = "lockstep-bench", version, after_help = EXAMPLES)]
pub(crate) struct Args {
    /// What is moved [default: all]
    #[arg(long = "data-set", value_enum, value_delimiter = ',', ignore_case = true, value_name = "SET,...")]
    data_sets: Vec<DataSet>,

    /// What is timed [default: all]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "OPERATION,...")]
    operations: Vec<Operation>,

    /// Who moves it; one that is named must be installed [default: lockstep and every peer that is installed]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "TOOL,...")]
    tools: Vec<Tool>,

    /// Runs of each tool; medians want at least 3 [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: Option<u32>,

    /// Milliseconds added to each request while it is timed; repeatable [default: 0]
    #[arg(long = "latency", value_delimiter = ',', value_name = "MS", value_parser = clap::value_parser!(u64).range(..=10_000))]
    latencies: Vec<u64>,

    /// Share of the data sets' full size, more than 0 and at most 16 [default: 1]
    #[arg(long, value_name = "SHARE", value_parser = parse_scale)]
    scale: Option<f64>,

    /// Defaults for about a minute on two cores: A, B and C at an eighth, lockstep, s5cmd and curl
    #[arg(long)]
    quick: bool,

    /// Defaults for a few seconds, to see that everything works, also in a debug build: A, B, C and F as small as they get, one run
    #[arg(long, conflicts_with = "quick")]
    smoke: bool,

    /// Also write the medians to this file, as one JSON array
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Where the data lie while this runs, in a fresh folder below it [default: /dev/shm if there is room, else the temporary folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,

    /// Where lockstep-coordinator and lockstep-agent are [default: beside this program]
    #[arg(long, value_name = "DIR")]
    pub(crate) bin_dir: Option<PathBuf>,
}

fn parse_scale(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(scale) if scale > 0.0 && scale <= 16.0 => Ok(scale),
        _ => Err("a number more than 0 and at most 16".to_owned()),
    }
}

/// What was asked for, defaults filled in.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scope {
    pub(crate) data_sets: Vec<DataSet>,
    pub(crate) operations: Vec<Operation>,
    /// None: every one that is installed.
    pub(crate) tools: Option<Vec<Tool>>,
    pub(crate) runs: u32,
    pub(crate) latencies: Vec<u64>,
    pub(crate) scale: f64,
}

impl Args {
    pub(crate) fn scope(&self) -> Scope {
        let (data_sets, tools, runs, scale): (&[DataSet], Option<&[Tool]>, u32, f64) = if self.smoke {
            // The sets have least sizes of their own.
            (&[DataSet::A, DataSet::B, DataSet::C, DataSet::F], None, 1, 1e-6)
        } else if self.quick {
            (&[DataSet::A, DataSet::B, DataSet::C], Some(&[Tool::Lockstep, Tool::S5cmd, Tool::Curl]), 3, 0.125)
        } else {
            (&DataSet::ALL, None, 3, 1.0)
        };
        Scope {
            data_sets: chosen(&self.data_sets, data_sets),
            operations: chosen(&self.operations, &Operation::ALL),
            tools: if self.tools.is_empty() { tools.map(<[Tool]>::to_vec) } else { Some(chosen(&self.tools, &[])) },
            runs: self.runs.unwrap_or(runs),
            latencies: chosen(&self.latencies, &[0]),
            scale: self.scale.unwrap_or(scale),
        }
    }
}

/// What was given, in its natural order and each once; or the default.
fn chosen<T: Copy + Ord>(given: &[T], default: &[T]) -> Vec<T> {
    let mut chosen = if given.is_empty() { default.to_vec() } else { given.to_vec() };
    chosen.sort_unstable();
    chosen.dedup();
    chosen
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn scope(line: &str) -> Result<Scope, String> {
        let words = std::iter::once("lockstep-bench").chain(line.split_whitespace());
        Args::try_parse_from(words).map(|args| args.scope()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn what_is_given_overrides_a_preset() {
        let quick = scope("--quick --data-set b --runs 5").unwrap();
        assert_eq!((quick.data_sets, quick.runs, quick.scale), (vec![DataSet::B], 5, 0.125));
        assert_eq!(quick.tools, Some(vec![Tool::Lockstep, Tool::S5cmd, Tool::Curl]));
    }

    #[test]
    fn lists_are_sorted_and_each_counts_once() {
        let scope =
            scope("--tools s5cmd-16,lockstep,s5cmd-16 --latency 30 --latency 0 --operations pull,push").unwrap();
        assert_eq!(scope.tools, Some(vec![Tool::Lockstep, Tool::S5cmd16]));
        assert_eq!(scope.latencies, [0, 30]);
        assert_eq!(scope.operations, [Operation::Push, Operation::Pull]);
        assert_eq!(scope.data_sets, DataSet::ALL);
    }

    #[test]
    fn wrong_flags_say_what_would_be_right() {
        for (line, hint) in [
            ("--data-set E", "possible values: A, B, C, D, F"),
            ("--tools s3cmd", "s5cmd-16"),
            ("--operations sync", "repair"),
            ("--runs 0", "1..=1000"),
            ("--scale 0", "more than 0"),
            ("--scale much", "more than 0"),
            ("--latency=-1", "--latency"),
            ("--quick --smoke", "cannot be used with"),
        ] {
            let error = scope(line).unwrap_err();
            assert!(error.contains(hint), "{line}: {error}");
        }
    }
}
