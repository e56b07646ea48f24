//! The audit trail, as the table `audit_log` has it.

use chrono::{DateTime, Utc};
use lockstep_protocol::id::{PipelineId, RoundId};

use super::{tables::Tables, values::limit};
use crate::store::{AuditFilter, AuditRow, Listed, Page, audit::bad_token, sqlstate::Fail, text::text};

/// A line of the audit trail, but for its number and time.
pub(super) struct Line<'l> {
    pub(super) pipeline: PipelineId,
    pub(super) round: Option<RoundId>,
    pub(super) host_idx: Option<u32>,
    pub(super) event: &'l str,
    pub(super) from: Option<&'l str>,
    pub(super) to: Option<&'l str>,
    pub(super) cause: &'l str,
    pub(super) actor: &'l str,
    pub(super) trace_id: Option<&'l String>,
    pub(super) guard: Option<(u64, u64)>,
}

impl Tables {
    pub(super) fn write(&mut self, now: DateTime<Utc>, line: &Line<'_>) {
        let id = u64::try_from(self.audit.len()).unwrap_or(u64::MAX).saturating_add(1);
        self.audit.push(AuditRow {
            id,
            at: now,
            pipeline: line.pipeline,
            round: line.round,
            host_idx: line.host_idx,
            event: line.event.to_owned(),
            from: line.from.map(str::to_owned),
            to: line.to.map(str::to_owned),
            cause: text(line.cause),
            actor: text(line.actor),
            trace_id: line.trace_id.cloned(),
            term: line.guard.map(|(term, _)| term),
            version: line.guard.map(|(_, version)| version),
        });
    }

    pub(super) fn list_audit(&self, filter: &AuditFilter, page: &Page) -> Result<Listed<AuditRow>, Fail> {
        let after = match page.token.as_deref() {
            None | Some("") => 0,
            Some(token) => token.parse::<i64>().map_err(|_| bad_token(token))?,
        };
        let after = u64::try_from(after).unwrap_or_default();
        let fits = |row: &&AuditRow| {
            row.id > after
                && filter.pipeline.is_none_or(|id| row.pipeline == id)
                && filter.round.is_none_or(|id| row.round == Some(id))
        };
        let items: Vec<_> = self.audit.iter().filter(fits).take(limit(page)).cloned().collect();
        let next = items.last().filter(|_| items.len() == limit(page)).map(|row| row.id.to_string());
        Ok(Listed { items, next })
    }
}
