//! Whether the engine uses a directory now. Nothing may be installed under a running engine.

use std::{fmt, path::Path, sync::Arc};

use lockstep_protocol::problem::{Problem, Reason};

/// An embedder's answer to the question whether its engine uses the directory now.
#[derive(Clone)]
pub struct EngineCheck(Arc<dyn Fn() -> Result<bool, Problem> + Send + Sync>);

impl EngineCheck {
    /// `running` is asked before a pull begins and again before anything is installed or removed. It must answer true from the moment the engine may read
    /// the directory until it reads it no more; an error counts as running.
    pub fn new(running: impl Fn() -> Result<bool, Problem> + Send + Sync + 'static) -> Self {
        Self(Arc::new(running))
    }

    /// An engine that is known to leave the directory alone whenever the agent is asked to install, because it waits for that itself.
    pub fn never_running() -> Self {
        Self::new(|| Ok(false))
    }

    pub(crate) fn refuse_if_running(&self, root: &Path) -> Result<(), Problem> {
        match (self.0)() {
            Ok(false) => Ok(()),
            Ok(true) => Err(engine_running(root, "its embedder says so")),
            Err(problem) => Err(engine_running(root, &format!("its embedder can't tell: {}", problem.message))),
        }
    }
}

impl fmt::Debug for EngineCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EngineCheck")
    }
}

/// `ENGINE_RUNNING`, with the directory and how it is known.
pub(crate) fn engine_running(root: &Path, how: &str) -> Problem {
    Problem::new(
        Reason::EngineRunning,
        format!(
            "the engine of {} is running or may be ({how}): stop it before installing a checkpoint",
            root.display()
        ),
    )
    .with("path", root.display())
    .with("how", how)
}
