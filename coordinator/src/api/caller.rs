//! Who calls: a name from `x-lockstep-actor` or the peer's address, and the trace that the call belongs to.

use lockstep_protocol::problem::{Problem, Reason};
use tonic::Request;

use crate::store::Caller;

/// Header in which a caller names itself. Until the security work lands nobody vouches for it.
pub const ACTOR_HEADER: &str = "x-lockstep-actor";

/// Longest name in bytes.
const MAX_ACTOR: usize = 128;

/// Reads who calls; must run in the call's own span.
pub(super) fn caller<T>(request: &Request<T>) -> Result<Caller, Problem> {
    let actor = match request.metadata().get(ACTOR_HEADER) {
        None => match request.remote_addr() {
            Some(peer) => format!("anonymous@{}", peer.ip()),
            None => "anonymous".to_owned(),
        },
        Some(value) => checked(value.as_bytes())?,
    };
    Ok(Caller {
        actor,
        trace_id: lockstep_telemetry::current_trace_id(),
        traceparent: lockstep_telemetry::traceparent(),
    })
}

/// The name goes into rows, logs and terminals: nothing in it may break a line or an escape sequence out.
fn checked(value: &[u8]) -> Result<String, Problem> {
    let good = (1..=MAX_ACTOR).contains(&value.len()) && value.iter().all(|c| c.is_ascii_graphic() || *c == b' ');
    match std::str::from_utf8(value) {
        Ok(name) if good => Ok(name.to_owned()),
        _ => Err(Problem::new(
            Reason::SpecInvalid,
            format!("{ACTOR_HEADER} is no name of 1 to {MAX_ACTOR} printable ASCII characters"),
        )
        .with("field", ACTOR_HEADER)
        .with("length", value.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_and_noise_is_refused() {
        let mut request = Request::new(());
        assert_eq!(caller(&request).unwrap().actor, "anonymous");
        request.metadata_mut().insert(ACTOR_HEADER, "alice of billing".parse().unwrap());
        assert_eq!(caller(&request).unwrap().actor, "alice of billing");
        for noise in ["a\tb".to_owned(), "x".repeat(129)] {
            request.metadata_mut().insert(ACTOR_HEADER, noise.parse().unwrap());
            assert_eq!(caller(&request).unwrap_err().metadata["field"], ACTOR_HEADER);
        }
        assert!(checked(b"\x1b[31mred").is_err());
        assert!(checked(b"").is_err());
    }
}
