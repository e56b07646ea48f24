//! `lockstep-load`: what coordination costs, from one pipeline to thousands.
//!
//! The path of a measurement: `args` says what is wanted; `rig` starts Postgres, the S3 server, the simulated agents ([`fleet`], with `part`) and the
//! coordinators; `run` creates the pipelines, pushes each once to warm up, looks at the idle system, then pushes on schedule; `counters` are read
//! before and after; `report` shows the difference, a round.

mod args;
mod counters;
pub mod fleet;
mod part;
mod report;
mod rig;
mod run;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

pub use args::{Args, Scope};

/// Measures what is asked for; whether every round was committed.
///
/// # Errors
///
/// Something could not be started, created or read.
pub async fn measure(args: &Args) -> Result<bool> {
    let scope = args.scope()?;
    let bin_dir = match &args.bin_dir {
        Some(folder) => folder.clone(),
        None => beside_this_program()?,
    };
    // Before anything is measured: minutes are not lost to a wrong path.
    let mut json = match &args.json {
        None => None,
        Some(path) => Some(std::fs::File::create(path).with_context(|| format!("--json {}", path.display()))?),
    };
    // Every agent has a connection; the coordinator inherits the limit and has its own.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let folder = tempfile::Builder::new().prefix("lockstep-load-").tempdir_in(place(args.dir.as_deref()))?;
    let figures = run::run(args, &scope, folder.path(), &bin_dir).await?;
    // A reader that has gone, as `head` does, is no error.
    let _ = writeln!(std::io::stdout(), "{}", report::render(&figures));
    if let Some(file) = &mut json {
        writeln!(file, "{:#}", report::document(&figures))?;
    }
    Ok(figures.failures.is_empty())
}

fn place(dir: Option<&Path>) -> PathBuf {
    let memory = Path::new("/dev/shm");
    match dir {
        Some(dir) => dir.to_owned(),
        None if memory.is_dir() => memory.to_owned(),
        None => std::env::temp_dir(),
    }
}

fn beside_this_program() -> Result<PathBuf> {
    let this = std::env::current_exe().context("can't find this program")?;
    Ok(this.parent().context("this program is in no folder")?.to_owned())
}
