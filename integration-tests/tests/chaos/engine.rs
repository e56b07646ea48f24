//! The engine of one host: makes local checkpoints, drops old ones, and lives with a full disk.

use std::{fs, path::PathBuf};

use lockstep_agent::store::directory::{DirectoryStore, document::CheckpointDocument};
use lockstep_integration_tests::{auditor::witness::Witness, content::noise, host::Host};
use lockstep_protocol::{
    id::{LocalCheckpointId, Step},
    manifest::RelativePath,
    problem::Problem,
};
use uuid::Uuid;

/// Enough for parts that are deltas; a tenth of them changes from step to step.
const FILES: u64 = 70;

fn folder(host: &Host, id: Uuid) -> PathBuf {
    host.dir.join("checkpoints").join(id.to_string())
}

/// Makes a checkpoint, most of it linked to the one before. Fails where the disk is full, and leaves nothing then.
pub(crate) fn make(
    host: &Host,
    witness: &Witness,
    id: Uuid,
    step: u64,
    before: Option<Uuid>,
) -> Result<(), Box<Problem>> {
    let store = DirectoryStore::open(&host.dir)?;
    let mut writer = store.writer(LocalCheckpointId::new(id))?;
    for n in 0..FILES {
        let path = RelativePath::new(format!("files/{n}")).expect("a good path");
        let old = before.map(|before| folder(host, before).join(path.as_str())).filter(|old| old.exists());
        match old {
            Some(old) if n % 10 != step % 10 => writer.link(&path, &old)?,
            _ => {
                let length = usize::try_from(n * 40 + step % 7).expect("short");
                writer.write(&path, &noise(step, &format!("{id} {n}"), length))?;
            }
        }
    }
    writer.publish(&CheckpointDocument {
        uuid: LocalCheckpointId::new(id),
        step: Step::new(step).expect("a step"),
        fingerprint: None,
        processed_records: None,
        created_at: chrono::Utc::now(),
    })?;
    witness.made(host, id, step);
    Ok(())
}

/// Drops every local checkpoint but these.
pub(crate) fn drop_all_but(host: &Host, kept: &[Uuid]) {
    for name in host.checkpoints() {
        let id: Uuid = name.parse().expect("a checkpoint's folder is its id");
        if !kept.contains(&id) {
            let gone = folder(host, id);
            // No checkpoint any more from here on. The agent may be looking at it: whoever is first.
            let _ = fs::remove_file(gone.join("checkpoint.json"));
            let _ = fs::remove_dir_all(gone);
        }
    }
}

/// The checkpoints that it sees.
pub(crate) fn checkpoints(host: &Host) -> Vec<Uuid> {
    host.checkpoints().iter().map(|name| name.parse().expect("a checkpoint's folder is its id")).collect()
}
