//! The audit trail.

use std::collections::{HashMap, hash_map::Entry};

use lockstep_proto::v1;
use lockstep_protocol::{
    id::{PipelineId, RoundId},
    problem::{Problem, Reason},
};

use super::{Api, request};
use crate::{
    convert,
    store::{AuditFilter, PipelineSelector},
};

impl Api {
    pub(super) async fn do_list_audit_events(
        &self,
        message: v1::ListAuditEventsRequest,
    ) -> Result<v1::ListAuditEventsResponse, Problem> {
        let page = request::page(message.page_size, message.page_token)?;
        let mut names = HashMap::new();
        let mut filter = AuditFilter::default();
        if !message.pipeline.is_empty() {
            let selector: PipelineSelector = message.pipeline.parse()?;
            match (self.store.get_pipeline(&selector).await.map_err(Problem::from), &selector) {
                (Ok(row), _) => {
                    filter.pipeline = Some(row.id);
                    names.insert(row.id, row.spec.name.to_string());
                }
                // The trail outlives the pipeline: an id still finds it.
                (Err(problem), PipelineSelector::Id(id)) if problem.reason == Reason::PipelineNotFound => {
                    filter.pipeline = Some(*id);
                }
                (Err(problem), _) => return Err(problem),
            }
        }
        if !message.round.is_empty() {
            let id: RoundId = message.round.parse()?;
            // An unknown round is said to be unknown, and not to have no events.
            let record = self.store.get_round(id).await?;
            filter.round = Some(id);
            names.insert(record.round.pipeline, record.round.pipeline_name.to_string());
        }
        let listed = self.store.list_audit(filter, page).await?;
        for row in &listed.items {
            if let Entry::Vacant(unknown) = names.entry(row.pipeline) {
                let name = self.name_of(row.pipeline).await?;
                unknown.insert(name);
            }
        }
        let events = listed
            .items
            .iter()
            .map(|row| convert::audit::event(row, names.get(&row.pipeline).map_or("", String::as_str)))
            .collect();
        Ok(v1::ListAuditEventsResponse { events, next_page_token: listed.next.unwrap_or_default() })
    }

    /// Present name; empty if the pipeline was deleted.
    async fn name_of(&self, id: PipelineId) -> Result<String, Problem> {
        match self.store.get_pipeline(&id.into()).await.map_err(Problem::from) {
            Ok(row) => Ok(row.spec.name.to_string()),
            Err(problem) if problem.reason == Reason::PipelineNotFound => Ok(String::new()),
            Err(problem) => Err(problem),
        }
    }
}
