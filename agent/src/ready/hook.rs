//! Who is told beside the engine: a callback of the process that embeds the agent, a command of the sidecar. Both hear each word after it is on disk.

use std::{fmt, process::Stdio, sync::Arc};

use lockstep_protocol::ready::Word;
use tokio::{process::Command, sync::watch};

use crate::core::Core;

/// A function of the embedding process.
#[derive(Clone)]
pub(crate) struct Callback(pub(crate) Arc<dyn Fn(Word) + Send + Sync>);

impl fmt::Debug for Callback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Callback")
    }
}

/// The next word, if there is one to come.
async fn next(words: &mut watch::Receiver<Option<Word>>) -> Option<Word> {
    let word = *words.wait_for(Option::is_some).await.ok()?;
    words.mark_unchanged();
    word
}

/// Calls it for each word, on a thread that may block.
pub(crate) async fn call(callback: Callback, mut words: watch::Receiver<Option<Word>>) {
    let mut last = None;
    while let Some(word) = next(&mut words).await {
        if last != Some(word) {
            let callback = callback.clone();
            if let Err(error) = tokio::task::spawn_blocking(move || (callback.0)(word)).await {
                tracing::error!(%error, "the callback of a word panicked");
            }
        }
        last = Some(word);
        if words.changed().await.is_err() {
            return;
        }
    }
}

/// Runs the command for each word that it has not run for, also by an earlier process. One that dies in the middle is run again.
pub(crate) async fn run(core: Arc<Core>, command: String) {
    let mut words = core.words.lock().await.subscribe();
    while let Some(word) = next(&mut words).await {
        if core.words.lock().await.is_new_to_the_hook(word) {
            let problem = run_once(&command, &word).await.err();
            let outcome = if problem.is_some() { "failed" } else { "done" };
            metrics::counter!("lockstep_agent_ready_hooks_total", "outcome" => outcome).increment(1);
            if let Some(problem) = &problem {
                tracing::error!(role = %word.role, round = ?word.round, "the ready hook failed: {problem}");
            }
            core.note_hook(word, problem).await;
        }
        if words.changed().await.is_err() {
            return;
        }
    }
}

async fn run_once(command: &str, word: &Word) -> Result<(), String> {
    let text = |value: Option<String>| value.unwrap_or_default();
    let status = Command::new("sh")
        .args(["-c", command])
        .env("LOCKSTEP_READY_ROLE", word.role.as_str())
        .env("LOCKSTEP_READY_FRESH", word.checkpoint.is_none().to_string())
        .env("LOCKSTEP_READY_CHECKPOINT", text(word.checkpoint.map(|(id, _)| id.to_string())))
        .env("LOCKSTEP_READY_STEP", text(word.checkpoint.map(|(_, step)| step.to_string())))
        .env("LOCKSTEP_READY_ROUND", text(word.round.map(|round| round.to_string())))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .status()
        .await;
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("`{command}` ended with {status}")),
        Err(error) => Err(format!("`{command}` could not be run: {error}")),
    }
}
