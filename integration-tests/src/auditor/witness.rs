//! Writes a history down while it happens.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use lockstep_client::{is_terminal, v1};
use uuid::Uuid;

use super::history::{Admitted, History, Installed, Latest, Made, Told};
use crate::{content, host::Host};

/// A history that several tasks write.
#[derive(Clone, Debug, Default)]
pub struct Witness(Arc<Mutex<History>>);

fn id(text: &str) -> Uuid {
    text.parse().unwrap_or_else(|error| panic!("{text:?} is no id: {error}"))
}

/// As the database spells a phase.
pub fn phase(round: &v1::Round) -> String {
    round.phase().as_str_name().trim_start_matches("ROUND_PHASE_").to_lowercase()
}

impl Witness {
    fn note(&self, write: impl FnOnce(&mut History)) {
        write(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Everything so far.
    pub fn history(&self) -> History {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// An engine has made a local checkpoint.
    pub fn made(&self, host: &Host, checkpoint: Uuid, step: u64) {
        let files = content::identity(&host.dir.join("checkpoints").join(checkpoint.to_string()));
        self.note(|history| {
            history.made.insert(checkpoint, Made { host_idx: host.idx, step, files });
        });
    }

    /// A call with this request id was answered with a round.
    pub fn admitted(&self, request: Uuid, round: &v1::Round) {
        let admitted = Admitted { pipeline: id(&round.pipeline_id), request, round: id(&round.id) };
        self.note(|history| history.admitted.push(admitted));
    }

    /// A client was shown a round. Only its end is noted.
    pub fn shown(&self, round: &v1::Round) {
        if !is_terminal(round) {
            return;
        }
        let reason = round.problem.as_ref().map(|problem| problem.reason.clone()).unwrap_or_default();
        let told = Told { round: id(&round.id), phase: phase(round), reason, at: Instant::now() };
        self.note(|history| history.told.push(told));
    }

    /// A client that asked for the newest checkpoint at this time was answered.
    pub fn latest(&self, asked: Instant, checkpoint: &v1::Checkpoint) {
        let commit = checkpoint.commit.as_ref().expect("a checkpoint has a commit");
        let place = (commit.generation, commit.seq);
        let latest = Latest { pipeline: id(&checkpoint.pipeline_id), place, asked, answered: Instant::now() };
        self.note(|history| history.latest.push(latest));
    }

    /// A client was told that a pull is installed; reads the disks.
    pub fn installed(&self, round: &v1::Round, hosts: &[Host]) {
        let disk = |host: &Host| -> BTreeMap<Uuid, content::Identity> {
            let ids = host.checkpoints();
            ids.iter().map(|name| (id(name), content::identity(&host.dir.join("checkpoints").join(name)))).collect()
        };
        let installed = Installed { round: id(&round.id), hosts: hosts.iter().map(disk).collect() };
        self.note(|history| history.installed.push(installed));
    }
}
