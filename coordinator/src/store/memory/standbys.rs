//! Standbys: what `standbys` does in SQL.

use std::time::Duration;

use chrono::{DateTime, SubsecRound, Utc};
use lockstep_protocol::{
    id::{PipelineId, RoundId},
    standby::{FollowState, Sighting, Standing},
};

use super::{
    audit::Line,
    tables::Tables,
    values::{as_json, later},
};
use crate::store::{
    Caller, ClaimState, DueStandby, DueStandbys, PipelineRow, StandbyRow,
    ask::Ask,
    audit::event,
    fail_back::{WANTS, because, becomes_standby, upkeep_in_progress},
    refuse_behind,
    sqlstate::Fail,
    standbys::{Follow, SaveFollowState, Steer, check_steers, follows_no_more},
};

/// One row of `standbys`.
#[derive(Clone, Debug)]
pub(super) struct StoredStandby {
    pinned: Option<RoundId>,
    stopped: bool,
    state: FollowState,
    version: u64,
    looking_until: Option<DateTime<Utc>>,
}

impl StoredStandby {
    fn new(now: DateTime<Utc>) -> Self {
        Self { pinned: None, stopped: false, state: FollowState::new(now), version: 0, looking_until: None }
    }

    pub(super) fn stopped(now: DateTime<Utc>) -> Self {
        Self { stopped: true, ..Self::new(now) }
    }

    fn next_look(&self) -> DateTime<Utc> {
        self.looking_until.map_or(self.state.due_at, |until| until.max(self.state.due_at))
    }
}

impl Tables {
    fn standing(&self, row: &PipelineRow) -> Standing {
        let stored = self.standbys.get(&row.id);
        Standing {
            pipeline: row.id,
            standby: row.claim == ClaimState::Standby,
            stopped: stored.is_some_and(|stored| stored.stopped),
            activation: self.active_take_over(row.id),
            pinned: stored.and_then(|stored| stored.pinned),
        }
    }

    pub(super) fn due_standbys(&mut self, lease: Duration, at_most: u32, now: DateTime<Utc>) -> DueStandbys {
        let wanted: Vec<_> = self
            .pipelines
            .values()
            .map(|stored| &stored.row)
            .filter(|row| row.deleted_at.is_none() && row.fenced.is_none())
            .filter_map(|row| self.standing(row).following())
            .collect();
        let before = self.standbys.clone();
        let mut due: Vec<_> = wanted
            .iter()
            .filter_map(|following| Some((before.get(&following.pipeline())?, *following)))
            .filter(|(stored, _)| stored.next_look() <= now)
            .map(|(stored, following)| (stored.state.due_at, following))
            .collect();
        due.sort_unstable_by_key(|(due_at, following)| (*due_at, following.pipeline()));
        due.truncate(usize::try_from(at_most).unwrap_or(usize::MAX));
        let mut found = DueStandbys { due: Vec::new(), next: None };
        for (_, following) in due {
            if let Some(stored) = self.standbys.get_mut(&following.pipeline()) {
                stored.version += 1;
                stored.looking_until = Some(later(now, lease));
                found.due.push(DueStandby { following, state: stored.state.clone(), version: stored.version });
            }
        }
        let others = wanted.iter().filter(|following| !found.due.iter().any(|due| due.following == **following));
        // A row that is made now is due at once, at the next call.
        found.next = others
            .map(|following| {
                let stored = before.get(&following.pipeline());
                stored.map_or(Duration::ZERO, |stored| (stored.next_look() - now).to_std().unwrap_or_default())
            })
            .min();
        for following in wanted {
            self.standbys.entry(following.pipeline()).or_insert_with(|| StoredStandby::new(now));
        }
        found
    }

    pub(super) fn save_follow_state(&mut self, save: &SaveFollowState) -> Result<bool, Fail> {
        let (sighting, problem) = (as_json(&save.state.sighting)?, as_json(&save.state.problem)?);
        Ok(match self.standbys.get_mut(&save.pipeline) {
            Some(stored) if stored.version == save.version => {
                let due_at = save.state.due_at.trunc_subsecs(6);
                stored.state = FollowState { due_at, sighting, problem, ..save.state.clone() };
                stored.looking_until = None;
                true
            }
            _ => false,
        })
    }

    pub(super) fn list_standbys(&self, only: Option<PipelineId>) -> Vec<StandbyRow> {
        let rows = self.pipelines.values().map(|stored| &stored.row);
        let mut found: Vec<StandbyRow> = rows
            .filter(|row| row.deleted_at.is_none() && row.claim == ClaimState::Standby)
            .filter(|row| only.is_none_or(|id| id == row.id))
            .map(|row| StandbyRow {
                name: row.spec.name.clone(),
                standing: self.standing(row),
                state: self.standbys.get(&row.id).map(|stored| stored.state.clone()),
                ended_fenced: self.ended_fenced(row),
            })
            .collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }

    pub(super) fn steer_standby(&mut self, steer: &Steer, now: DateTime<Utc>) -> Result<PipelineRow, Fail> {
        let pipeline = self.own_pipeline(&steer.pipeline)?;
        check_steers(&pipeline, steer.follow, self.active_take_over(pipeline.id))?;
        let turns = becomes_standby(&pipeline, steer.follow);
        let pipeline = if turns { self.become_standby(&pipeline, &steer.caller, now)? } else { pipeline };
        let says = self.standbys.get(&pipeline.id).map(|stored| (stored.pinned, stored.stopped));
        let changes = says.is_none_or(|(pinned, stopped)| steer.follow.changes(pinned, stopped));
        let (new, event) = (says.is_none(), turns || changes);
        let stored = self.standbys.entry(pipeline.id).or_insert_with(|| StoredStandby::new(now));
        if !new {
            stored.version += 1;
        }
        stored.looking_until = None;
        stored.state = FollowState { due_at: now, failures: 0, problem: None, ..stored.state.clone() };
        match steer.follow {
            Follow::From(pinned) => (stored.pinned, stored.stopped) = (pinned, false),
            Follow::Stop => stored.stopped = true,
        }
        if !event {
            return Ok(pipeline);
        }
        self.write(
            now,
            &Line {
                pipeline: pipeline.id,
                round: None,
                host_idx: None,
                event: steer.follow.event(),
                from: None,
                to: None,
                cause: &steer.follow.cause(),
                actor: &steer.caller.actor,
                trace_id: steer.caller.trace_id.as_ref(),
                guard: None,
            },
        );
        Ok(pipeline)
    }

    fn become_standby(
        &mut self,
        before: &PipelineRow,
        caller: &Caller,
        now: DateTime<Utc>,
    ) -> Result<PipelineRow, Fail> {
        refuse_behind(before)?;
        self.refuse_active(before, WANTS)?;
        let mut open = self.upkeep.values().map(|stored| &stored.value).filter(|upkeep| upkeep.ended_at.is_none());
        if let Some(open) = open.find(|upkeep| upkeep.pipeline == before.id) {
            return Err(upkeep_in_progress(before, open.id, open.work.as_str()).into());
        }
        self.change_pipeline(before.id, now, |row| {
            row.claim = ClaimState::Standby;
            row.fence_bytes = None;
            row.fenced = None;
        });
        self.words.remove(&before.id);
        self.retirements.retain(|(pipeline, ..), _| *pipeline != before.id);
        if let Some(stored) = self.standbys.get_mut(&before.id) {
            stored.state.sighting = Sighting::default();
        }
        let about = (event::PIPELINE_CLAIM, Some(before.claim.as_str()), Some(ClaimState::Standby.as_str()));
        self.write_about(before.id, about, &because(before), caller, now);
        self.any_pipeline(before.id)
    }

    pub(super) fn still_follows(&self, pipeline: &PipelineRow, ask: &Ask) -> Result<(), Fail> {
        let Ask::Pull(pull) = ask else { return Ok(()) };
        let Some(version) = pull.follows else { return Ok(()) };
        let same = self.standbys.get(&pipeline.id).is_some_and(|stored| stored.version == version);
        let still = same && self.standing(pipeline).following().is_some();
        if still { Ok(()) } else { Err(follows_no_more(pipeline).into()) }
    }
}
