//! The command line.

use clap::{Args, Parser, Subcommand};

use crate::commands::{audit, checkpoint, gc, pipeline, probe, pull, push, resync, round, standby, status, take_over};
use crate::demo::Demo;
use crate::dev::Dev;
use crate::hidden;
use crate::output::Format;

/// Keeps the distributed checkpoints of stateful pipelines in S3: pushes and pulls them as one consistent cut over all hosts.
#[derive(Debug, Parser)]
#[command(name = "lockstep", version, propagate_version = true, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const AFTER_HELP: &str = "\
Try it:
  lockstep demo                                  the whole story on this machine, in half a minute
  lockstep dev                                   coordinator, three agents and engines that stay up

Everyday:
  lockstep pipeline apply -f orders.yaml         create or update a pipeline
  lockstep push orders --wait                    checkpoint to S3, and wait until it counts
  lockstep pull orders --standby=false --wait    the newest checkpoint onto every host
  lockstep standby status orders-standby         what a standby holds, and how far behind it is
  lockstep status                                all pipelines at a glance
  lockstep audit orders                          who did what, when and why

Exit codes: 0 done, 1 the operation failed, 2 usage, 3 coordinator unreachable, 4 not found, 5 conflict.
Each command's --help has examples.";

/// What every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Address of the coordinator.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "LOCKSTEP_COORDINATOR",
        default_value = "http://127.0.0.1:7400"
    )]
    pub(crate) coordinator: String,
    /// table is for people; json is one document on stdout and nothing else there, errors included.
    #[arg(long, global = true, value_name = "FORMAT", value_enum, default_value_t)]
    pub(crate) output: Format,
    /// What is logged on stderr: error, warn, info, debug, trace, or a filter such as lockstep_client=debug. Default: LOCKSTEP_LOG, else
    /// RUST_LOG, else warn.
    #[arg(long, global = true, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
    /// Who does this, for the audit trail. Default: user@host.
    #[arg(long, global = true, value_name = "NAME", env = "LOCKSTEP_ACTOR")]
    pub(crate) actor: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[command(flatten)]
    Ours(Ours),
    #[command(flatten)]
    Hidden(Box<Hidden>),
}

/// What people type.
#[derive(Debug, Subcommand)]
pub(crate) enum Ours {
    /// Create, update, show and forget pipelines.
    #[command(subcommand)]
    Pipeline(pipeline::Command),
    /// Push a pipeline's checkpoint from all hosts to its location.
    Push(push::Push),
    /// Pull a checkpoint onto all hosts.
    Pull(pull::Pull),
    /// Look at pushes and pulls, follow or cancel them.
    #[command(subcommand)]
    Round(round::Command),
    /// Look at what a pipeline's location holds.
    #[command(subcommand)]
    Checkpoint(checkpoint::Command),
    /// Retire, sweep and delete what a location does not need any more.
    Gc(gc::Gc),
    /// Let a standby follow its location, and look how far behind it is.
    #[command(subcommand)]
    Standby(standby::Command),
    /// Make a pipeline the owner of its location, whoever owns it now.
    TakeOver(take_over::TakeOver),
    /// Make the database know again what a pipeline's bucket holds, after it was lost or restored from a backup.
    Resync(resync::Resync),
    /// Who did what, each phase change with its cause.
    Audit(audit::Audit),
    /// All pipelines at a glance.
    Status(status::Status),
    /// Try whether a bucket can hold checkpoints, from here with the credentials of this shell.
    Probe(probe::Probe),
    /// Coordinator, agents, Postgres, S3 and small engines on this machine, until Ctrl-C.
    Dev(Dev),
    /// The whole story on this machine in half a minute: push, kill, lose every disk, pull, compare.
    Demo(Demo),
}

/// What [`crate::rig`] starts.
#[derive(Debug, Subcommand)]
pub(crate) enum Hidden {
    #[command(name = "__coordinator", hide = true)]
    Coordinator(Box<lockstep_coordinator::config::CoordinatorArgs>),
    #[command(name = "__agent", hide = true)]
    Agent(lockstep_agent::args::AgentArgs),
    #[command(name = "__s3", hide = true)]
    S3(hidden::S3),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// The commands that people type and that do something, with their way from the top.
    fn leaves(command: &clap::Command, path: &str, found: &mut Vec<(String, String)>) {
        let shown: Vec<_> = command.get_subcommands().filter(|below| !below.is_hide_set()).collect();
        for below in &shown {
            leaves(below, &format!("{path} {}", below.get_name()), found);
        }
        if shown.is_empty() {
            found.push((path.to_owned(), command.get_after_help().map(ToString::to_string).unwrap_or_default()));
        }
    }

    #[test]
    fn the_help_of_every_command_has_examples_of_that_command() {
        let mut found = Vec::new();
        leaves(&Cli::command(), "lockstep", &mut found);
        assert!(found.len() > 25, "{} commands", found.len());
        for (path, help) in found {
            let (_, examples) = help.split_once("Examples:\n").unwrap_or_default();
            // Global options may stand before the command.
            let plain = examples.replace("--output json ", "");
            assert!(plain.contains(&path), "{path}: {help}");
        }
    }

    #[test]
    fn what_the_examples_say_is_understood() {
        let mut found = Vec::new();
        leaves(&Cli::command(), "lockstep", &mut found);
        for (path, help) in found {
            let (_, examples) = help.split_once("Examples:\n").unwrap_or_default();
            for line in examples.lines().filter(|line| line.starts_with("  lockstep ")) {
                let words = words(line.trim());
                assert!(Cli::try_parse_from(&words).is_ok(), "{path}: {words:?}");
            }
        }
    }

    /// As a shell takes it apart, without what follows the command: a pipe, a redirection, a remark. A substitution is one word.
    fn words(line: &str) -> Vec<String> {
        let (line, substituted) = line.split_once(" $(").map_or((line, None), |(before, _)| (before, Some("UUID")));
        let command = line.split(['|', '>']).next().unwrap_or_default();
        let command = command.split("   ").next().unwrap_or_default().trim();
        let mut words = vec![String::new()];
        let mut quoted = false;
        for char in command.chars() {
            match (char, quoted, words.last_mut()) {
                ('\'', _, _) => quoted = !quoted,
                (' ', false, _) => words.push(String::new()),
                (char, _, Some(word)) => word.push(char),
                (_, _, None) => {}
            }
        }
        words.extend(substituted.map(str::to_owned));
        words
    }
}
