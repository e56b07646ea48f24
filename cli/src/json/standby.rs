//! Standbys.

use lockstep_client::v1;
use serde_json::{Value, json};

use super::{commit, enumeration, maybe, optional, problem, time};

pub(crate) fn state_name(state: v1::StandbyState) -> String {
    enumeration(state.as_str_name(), "STANDBY_STATE_")
}

pub(crate) fn standby(standby: &v1::Standby) -> Value {
    json!({
        "state": state_name(standby.state()),
        "pinned": optional(&standby.pinned),
        "next_time": time(standby.next_time.as_ref()),
        "failures": standby.failures,
        "problem": maybe(standby.problem.as_ref(), problem),
        "held": maybe(standby.held.as_ref(), point),
        "newest": maybe(standby.newest.as_ref(), point),
        "lag": maybe(standby.lag.as_ref(), |lag| json!({
            "steps": lag.steps,
            "bytes": lag.bytes,
            "seconds": lag.seconds,
        })),
        "look_time": time(standby.look_time.as_ref()),
        "take_over": optional(&standby.take_over),
        "activation_problem": maybe(standby.activation_problem.as_ref(), problem),
    })
}

fn point(point: &v1::StandbyPoint) -> Value {
    json!({
        "commit": maybe(point.commit.as_ref(), commit),
        "step": point.step,
        "commit_time": time(point.commit_time.as_ref()),
    })
}
