//! Audit events to proto.

use lockstep_proto::v1;

use super::time;
use crate::store::AuditRow;

/// One line of the audit trail; rows know their pipeline by id only.
pub fn event(row: &AuditRow, pipeline_name: &str) -> v1::AuditEvent {
    let mut detail = serde_json::Map::new();
    for (name, value) in [("term", row.term), ("version", row.version)] {
        if let Some(value) = value {
            detail.insert(name.to_owned(), value.into());
        }
    }
    v1::AuditEvent {
        id: row.id,
        time: Some(time::timestamp(row.at)),
        pipeline_id: row.pipeline.to_string(),
        pipeline_name: pipeline_name.to_owned(),
        round: row.round.map(|id| id.to_string()).unwrap_or_default(),
        host_idx: row.host_idx,
        actor: row.actor.clone(),
        action: row.event.clone(),
        from_phase: row.from.clone().unwrap_or_default(),
        to_phase: row.to.clone().unwrap_or_default(),
        cause: row.cause.clone(),
        trace_id: row.trace_id.clone().unwrap_or_default(),
        detail: serde_json::Value::Object(detail).to_string(),
    }
}
