//! Timestamps and durations. What the well-known types can hold and ours can't is refused, with the field's name.

use std::time::Duration;

use chrono::{DateTime, Utc};
use lockstep_protocol::problem::{Problem, Reason};

/// As messages carry it.
pub fn timestamp(time: DateTime<Utc>) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: time.timestamp(), nanos: time.timestamp_subsec_nanos().cast_signed() }
}

/// As messages carry it. What exceeds the well-known type is cut to its greatest value.
pub fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: duration.subsec_nanos().cast_signed(),
    }
}

fn refuse(field: &str, value: impl std::fmt::Display, why: &str) -> Problem {
    Problem::new(Reason::SpecInvalid, format!("{field} {value}: {why}")).with("field", field).with("value", value)
}

/// A time of years 1 to 9999, as the well-known type allows.
pub fn time_of(field: &str, time: &prost_types::Timestamp) -> Result<DateTime<Utc>, Problem> {
    /// 0001-01-01T00:00:00Z and 9999-12-31T23:59:59Z, from timestamp.proto.
    const RANGE: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;
    let show = || format!("{}s {}ns", time.seconds, time.nanos);
    u32::try_from(time.nanos)
        .ok()
        .filter(|nanos| *nanos < 1_000_000_000 && RANGE.contains(&time.seconds))
        .and_then(|nanos| DateTime::from_timestamp(time.seconds, nanos))
        .ok_or_else(|| refuse(field, show(), "is not a time of the years 1 to 9999"))
}

/// A duration that is not negative and well formed.
pub fn duration_of(field: &str, value: &prost_types::Duration) -> Result<Duration, Problem> {
    /// About 10,000 years, from duration.proto.
    const MAX_SECONDS: u64 = 315_576_000_000;
    let show = || format!("{}s {}ns", value.seconds, value.nanos);
    let seconds = u64::try_from(value.seconds).ok().filter(|seconds| *seconds <= MAX_SECONDS);
    let nanos = u32::try_from(value.nanos).ok().filter(|nanos| *nanos < 1_000_000_000);
    seconds
        .zip(nanos)
        .map(|(seconds, nanos)| Duration::new(seconds, nanos))
        .ok_or_else(|| refuse(field, show(), "is negative or no well-formed duration"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn times_and_durations_come_back(seconds in 0_i64..253_402_300_799, nanos in 0_u32..1_000_000_000) {
            let time = DateTime::from_timestamp(seconds, nanos).unwrap();
            prop_assert_eq!(time_of("time", &timestamp(time)).unwrap(), time);
            let length = Duration::new(seconds.cast_unsigned(), nanos);
            prop_assert_eq!(duration_of("deadline", &duration(length)).unwrap(), length);
        }
    }

    #[test]
    fn what_is_out_of_range_names_its_field() {
        for (seconds, nanos) in [(-1, 0), (0, -1), (0, 1_000_000_000), (i64::MAX, 0), (315_576_000_001, 0)] {
            let refused = duration_of("deadline", &prost_types::Duration { seconds, nanos }).unwrap_err();
            assert_eq!(refused.reason, Reason::SpecInvalid);
            assert_eq!(refused.metadata["field"], "deadline");
        }
        for (seconds, nanos) in [(i64::MAX, 0), (i64::MIN, 0), (0, -1), (0, 1_000_000_000), (253_402_300_800, 0)] {
            let refused = time_of("time", &prost_types::Timestamp { seconds, nanos }).unwrap_err();
            assert_eq!(refused.metadata["field"], "time", "{seconds} {nanos}");
        }
    }
}
