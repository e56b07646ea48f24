//! Standbys.

use std::time::Duration;

use lockstep_client::v1;

use crate::{
    json,
    text::{self, NONE},
};

/// What a standby follows, what its hosts hold, and how far that is behind.
pub(crate) fn rows(standby: &v1::Standby) -> Vec<(&'static str, String)> {
    let mut follows = json::standby_state_name(standby.state());
    if !standby.pinned.is_empty() {
        follows.push_str(&format!(", stays on checkpoint {}", standby.pinned));
    }
    if !standby.take_over.is_empty() {
        follows.push_str(&format!(", take-over {}", standby.take_over));
    }
    let mut rows = vec![
        ("standby", follows),
        ("holds", point(standby.held.as_ref())),
        ("newest", point(standby.newest.as_ref())),
        ("behind", lag(standby.lag.as_ref())),
    ];
    if let Some(next) = &standby.next_time {
        let failures = match standby.failures {
            0 => String::new(),
            1 => ", after a failure".to_owned(),
            failures => format!(", after {failures} failures in a row"),
        };
        rows.push(("next look", format!("{}{failures}", text::time(Some(next)))));
    }
    rows
}

fn point(point: Option<&v1::StandbyPoint>) -> String {
    point.map_or_else(
        || NONE.to_owned(),
        |point| {
            let round = point.commit.as_ref().map_or(NONE, |commit| commit.round.as_str());
            format!("step {} of {} (checkpoint {round})", point.step, text::time(point.commit_time.as_ref()))
        },
    )
}

fn lag(lag: Option<&v1::StandbyLag>) -> String {
    match lag {
        None => "not known yet".to_owned(),
        Some(lag) if *lag == v1::StandbyLag::default() => "nothing".to_owned(),
        Some(lag) => format!(
            "{} steps, {}, {}",
            lag.steps,
            text::size(lag.bytes),
            text::duration(Duration::from_secs(lag.seconds))
        ),
    }
}
