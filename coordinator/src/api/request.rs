//! What requests have in common: ids, deadlines, pages.

use std::{str::FromStr, time::Duration};

use lockstep_protocol::{
    id::RequestId,
    problem::{Problem, Reason},
};

use crate::{
    config::{MAX_DEADLINE, MIN_DEADLINE},
    convert::time,
    store::Page,
};

/// Refuses a value of a request.
pub(super) fn refuse(field: &str, value: impl std::fmt::Display, why: &str) -> Problem {
    Problem::new(Reason::SpecInvalid, format!("{field} {value}: {why}")).with("field", field).with("value", value)
}

/// An id or selector that must be there.
pub(super) fn required<T: FromStr<Err = Problem>>(field: &str, text: &str) -> Result<T, Problem> {
    if text.is_empty() {
        return Err(Problem::new(Reason::SpecInvalid, format!("{field} is missing")).with("field", field));
    }
    text.parse()
}

/// Empty: the caller gave none.
pub(super) fn request_id(text: &str) -> Result<Option<RequestId>, Problem> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
}

/// The caller's deadline or the default.
pub(super) fn deadline(given: Option<&prost_types::Duration>, default: Duration) -> Result<Duration, Problem> {
    let Some(given) = given else { return Ok(default) };
    let deadline = time::duration_of("deadline", given)?;
    if deadline.is_zero() {
        return Ok(default);
    }
    if !(MIN_DEADLINE..=MAX_DEADLINE).contains(&deadline) {
        return Err(refuse("deadline", humantime::format_duration(deadline), "is not between 1s and 7d"));
    }
    Ok(deadline)
}

/// Size and token of a page. The token is the store's own business, or that of [`Cursor`].
pub(super) fn page(size: i32, token: String) -> Result<Page, Problem> {
    const MAX: u32 = 1000;
    let size = match u32::try_from(size) {
        Ok(0) => Page::default().size,
        Ok(size) => size.min(MAX),
        Err(_) => return Err(refuse("page_size", size, "is negative")),
    };
    Ok(Page { size, token: (!token.is_empty()).then_some(token) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_have_a_default_and_bounds() {
        let default = Duration::from_secs(3600);
        let given = |seconds: i64, nanos: i32| deadline(Some(&prost_types::Duration { seconds, nanos }), default);
        assert_eq!(deadline(None, default), Ok(default));
        assert_eq!(given(0, 0), Ok(default));
        assert_eq!(given(1, 0), Ok(Duration::from_secs(1)));
        assert_eq!(given(7 * 24 * 3600, 0), Ok(MAX_DEADLINE));
        for (seconds, nanos) in [(0, 999_999_999), (7 * 24 * 3600, 1), (-1, 0), (i64::MAX, 0)] {
            assert_eq!(given(seconds, nanos).unwrap_err().metadata["field"], "deadline", "{seconds}");
        }
    }

    #[test]
    fn pages_have_a_default_and_a_limit() {
        assert_eq!(page(0, String::new()), Ok(Page { size: 100, token: None }));
        assert_eq!(page(5000, "t".to_owned()), Ok(Page { size: 1000, token: Some("t".to_owned()) }));
        assert_eq!(page(-1, String::new()).unwrap_err().metadata["field"], "page_size");
    }

    #[test]
    fn a_request_id_is_a_uuid_or_absent() {
        assert_eq!(request_id(""), Ok(None));
        assert_eq!(request_id("again").unwrap_err().reason, Reason::SpecInvalid);
        assert!(request_id("0b54a5c0-3c1d-4c1b-9a53-0d6f3f3f2a11").is_ok_and(|id| id.is_some()));
    }
}
