//! Direct sync.
use crate::{core::Core, order::PushDone};
use lockstep_protocol::{
    commit::CommitRef,
    host::Slot,
    location::Location,
    problem::{Problem, Reason},
};
use std::sync::Arc;
pub(crate) fn refuse_multihost(slot: Slot) -> Result<(), Problem> {
    match slot {
        Slot::Solo => Ok(()),
        Slot::Host(info) => Err(Problem::new(
            Reason::MultihostRequiresCoordinator,
            format!("this agent runs as {info}: a direct sync is for solo only, push through the coordinator")
                .to_owned(),
        )),
    }
}
pub(crate) struct Synced {
    pub(crate) commit: CommitRef,
    pub(crate) done: PushDone,
}
pub(crate) async fn sync(_core: Arc<Core>, _location: Location) -> Result<Synced, Problem> {
    Err(Problem::new(Reason::SpecInvalid, "a direct sync is not built yet: push through the coordinator"))
}
