//! What lay on disks when a pull was told to be installed: the same checkpoint on every host, byte by byte what was pushed (S12).

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use uuid::Uuid;

use super::{
    Audit, Evidence,
    history::Installed,
    location::{Decision, LocationView},
};
use crate::content::differences;

pub(super) fn check(evidence: &Evidence, views: &BTreeMap<Uuid, Rc<LocationView>>, audit: &mut Audit) {
    for row in evidence.rows.rounds.values().filter(|row| row.phase == "installed") {
        let hosts = evidence.rows.hosts(row.id);
        let complete = hosts.len() == row.n_hosts.max(1) as usize;
        if !complete || hosts.iter().any(|host| host.phase != "installed" || host.incarnation.is_none()) {
            audit.found("S12", format!("pull {} is installed, and not all of its hosts are", row.id));
        }
    }
    for installed in &evidence.history.installed {
        audit.installed += 1;
        check_disks(installed, evidence, views, audit);
    }
}

fn check_disks(
    installed: &Installed,
    evidence: &Evidence,
    views: &BTreeMap<Uuid, Rc<LocationView>>,
    audit: &mut Audit,
) {
    let name = format!("pull {}", installed.round);
    let Some(row) = evidence.rows.rounds.get(&installed.round) else {
        return audit.found("S12", format!("{name} was installed and is in no database"));
    };
    let commit = row.source.and_then(|place| match views.get(&row.pipeline)?.decisions.get(&place)? {
        Decision::Commit(commit) => Some(commit),
        Decision::Abort(_) => None,
    });
    let mut steps = BTreeSet::new();
    for (host_idx, checkpoints) in (0_u32..).zip(&installed.hosts) {
        let mut found = checkpoints.iter();
        let (Some((id, files)), None) = (found.next(), found.next()) else {
            let ids: Vec<_> = checkpoints.keys().collect();
            audit.found("S12", format!("{name} left host {host_idx} with the checkpoints {ids:?}"));
            continue;
        };
        let named = commit.and_then(|commit| commit.parts.iter().find(|part| part.host_idx == host_idx));
        if named.is_some_and(|part| part.local_checkpoint != *id) {
            audit.found("S12", format!("{name} left host {host_idx} with {id}, which is not what its commit names"));
        }
        let Some(made) = evidence.history.made.get(id) else {
            audit.found("S12", format!("{name} left host {host_idx} with {id}, which no engine has made"));
            continue;
        };
        steps.insert(made.step);
        let different = differences(&made.files, files);
        if made.host_idx != host_idx || !different.is_empty() {
            audit.found("S12", format!("{name} left host {host_idx} with another content of {id}: {different:?}"));
        }
    }
    if steps.len() != 1 || steps.first().copied() != row.step {
        audit.found("S12", format!("{name} is of step {:?} and left the steps {steps:?}", row.step));
    }
}
