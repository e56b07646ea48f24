//! Standbys as messages carry them.

use chrono::{DateTime, Utc};
use lockstep_proto::v1;
use lockstep_protocol::standby::{Point, Sighting, Standing};

use super::{round::commit_ref, status, time};
use crate::store::StandbyRow;

/// As messages carry it. While a pull is active its end, and so the next look, is not known.
pub fn standby(row: &StandbyRow, pull_active: bool, now: DateTime<Utc>) -> v1::Standby {
    let standing = &row.standing;
    let state = row.state.as_ref();
    let nothing = Sighting::default();
    let sighting = state.map_or(&nothing, |state| &state.sighting);
    let follows = standing.following().is_some();
    v1::Standby {
        state: word(standing).into(),
        pinned: standing.pinned.map(|pinned| pinned.to_string()).unwrap_or_default(),
        next_time: state.filter(|_| follows && !pull_active).map(|state| time::timestamp(state.due_at)),
        failures: state.map_or(0, |state| state.failures),
        problem: state.and_then(|state| state.problem.as_ref()).map(status::problem),
        held: sighting.held.as_ref().map(point),
        newest: sighting.newest.as_ref().map(point),
        lag: sighting.at.map(|_| v1::StandbyLag {
            steps: sighting.lag.map_or(0, |lag| lag.steps),
            bytes: sighting.lag.map_or(0, |lag| lag.bytes),
            seconds: sighting.seconds(now),
        }),
        look_time: sighting.at.map(time::timestamp),
        take_over: standing.activation.map(|id| id.to_string()).unwrap_or_default(),
        activation_problem: row.ended_fenced.as_ref().filter(|_| standing.activation.is_none()).map(status::problem),
    }
}

const fn word(standing: &Standing) -> v1::StandbyState {
    match (standing.activation, standing.stopped) {
        (Some(_), _) => v1::StandbyState::Activating,
        (None, true) => v1::StandbyState::Stopped,
        (None, false) => v1::StandbyState::Following,
    }
}

fn point(point: &Point) -> v1::StandbyPoint {
    v1::StandbyPoint {
        commit: Some(commit_ref(&point.commit)),
        step: point.step.get(),
        commit_time: Some(time::timestamp(point.at)),
    }
}
