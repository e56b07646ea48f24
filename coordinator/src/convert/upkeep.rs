//! Pins, collections and what would go, to proto.

use lockstep_proto::v1;
use lockstep_protocol::{
    garbage::{Doomed, OpenUpload},
    pin::Pin,
    upkeep::Upkeep,
};

use super::{status, time};

/// One pin.
pub fn pin(pin: &Pin) -> v1::Pin {
    v1::Pin {
        id: pin.id.to_string(),
        name: pin.name.clone(),
        key: pin.key().to_string(),
        checkpoint: pin.commit.round.to_string(),
        pinned_by: pin.pinned_by.clone(),
        pin_time: Some(time::timestamp(pin.pinned_at)),
    }
}

/// A row that collects.
pub fn collection(upkeep: &Upkeep) -> v1::Collection {
    v1::Collection {
        id: upkeep.id.to_string(),
        phase: upkeep.phase.as_str().to_owned(),
        retired: upkeep.tally.retired,
        swept: upkeep.tally.swept,
        objects: upkeep.tally.objects,
        bytes: upkeep.tally.bytes,
        uploads: upkeep.tally.uploads,
        put_off: upkeep.tally.put_off,
        problem: upkeep.problem.as_ref().map(status::problem),
        create_time: Some(time::timestamp(upkeep.created_at)),
        end_time: upkeep.ended_at.map(time::timestamp),
    }
}

/// An object that would go.
pub fn object(doomed: &Doomed, orphan: bool) -> v1::GarbageObject {
    v1::GarbageObject { key: doomed.key.clone(), bytes: doomed.bytes, orphan }
}

/// An upload that would be aborted.
pub fn upload(open: &OpenUpload) -> v1::GarbageUpload {
    v1::GarbageUpload { key: open.key.clone(), upload: open.upload.clone() }
}
