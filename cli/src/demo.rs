//! `lockstep demo`: the whole story on this machine, told as it happens.

mod narrator;
mod story;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::failure::Failure;
use crate::rig::{Rig, RigOptions};

use narrator::Narrator;
use story::Story;

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Demo {
    /// Number from which all data of the engines follow.
    #[arg(long, default_value_t = 7400, value_name = "N")]
    seed: u64,
    /// Keep what the demo leaves (logs, objects, disks) in this directory, which must not exist; else it is temporary.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

const AFTER_HELP: &str = "\
Starts a Postgres and an S3 server of its own, a coordinator and three agents, with small engines beside them. Then: checkpoints are
pushed, the coordinator is killed in the middle of a push, every disk is lost, the newest checkpoint is pulled, and every
byte is compared. Nothing outside of a temporary directory is touched; everything ends with the command.

Needs only Postgres binaries (apt-get install postgresql); says how to get them if there are none.
Exit code: 0 if every host's state came back byte by byte, 1 otherwise.

Examples:
  lockstep demo
  lockstep demo --keep /tmp/demo                what it leaves, to look at";

const HOSTS: u32 = 3;

pub(crate) async fn run(args: Demo) -> Result<(), Failure> {
    tokio::select! {
        told = Box::pin(tell(args)) => told,
        // Dropping the story ends all processes and removes the directory.
        _ = tokio::signal::ctrl_c() => Err(Failure::local("INTERRUPTED", "the demo was interrupted; everything it started has ended")),
    }
}

async fn tell(args: Demo) -> Result<(), Failure> {
    // Before the rig, so that it is removed after everything in it has ended.
    let temporary = match &args.keep {
        Some(_) => None,
        None => Some(tempfile::Builder::new().prefix("lockstep-demo-").tempdir().map_err(no_directory)?),
    };
    let dir = match (&temporary, args.keep) {
        (Some(temporary), _) => temporary.path().to_owned(),
        (None, Some(keep)) => {
            std::fs::create_dir(&keep).map_err(no_directory)?;
            keep
        }
        // One of the two is there.
        (None, None) => return Ok(()),
    };
    let narrator = Narrator::begin();
    narrator.say("starting an own postgres and S3 server, a coordinator and three agents");
    let options = RigOptions {
        dir,
        hosts: HOSTS,
        first_port: None,
        durable: false,
        name: "demo",
        // The default, 10 s, would be a third of the demo.
        lease: Duration::from_secs(2),
    };
    let mut story = Story::new(Rig::start(options).await?, narrator, args.seed)?;
    let agree = story.tell().await;
    let (rig, narrator) = story.end();
    rig.stop().await?;
    if agree? {
        narrator.close("every byte of every host came back");
        Ok(())
    } else {
        Err(Failure::local("INTEGRITY", "the state of at least one host is not what was pushed"))
    }
}

fn no_directory(error: std::io::Error) -> Failure {
    Failure::local("LOCAL_IO", format!("can't make a directory for the demo: {error}"))
}
