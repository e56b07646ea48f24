//! What hosts are told after a pull, as messages carry it.

use lockstep_proto::v1;
use lockstep_protocol::ready::{Role, Telling};

use super::{status, time};

/// As messages carry it.
pub const fn role(role: Role) -> v1::Role {
    match role {
        Role::Active => v1::Role::Active,
        Role::Standby => v1::Role::Standby,
    }
}

/// As messages carry it.
pub fn ready(telling: &Telling) -> v1::Ready {
    let owed = |host_idx: u32, problem| v1::HostNotReady { host_idx, problem };
    v1::Ready {
        round: telling.round.to_string(),
        role: role(telling.role).into(),
        not_told: (0..)
            .zip(&telling.hosts)
            .filter(|(_, host)| !host.told)
            .map(|(host_idx, host)| owed(host_idx, host.problem.as_ref().map(status::problem)))
            .collect(),
        next_time: telling.retry_at.map(time::timestamp),
        told_time: telling.told_at.map(time::timestamp),
    }
}
