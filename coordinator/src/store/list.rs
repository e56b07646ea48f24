//! Lists of rounds, newest first.

use chrono::{DateTime, Utc};
use lockstep_protocol::id::{PipelineId, RoundId};
use uuid::Uuid;

use super::{
    Listed, Page, RoundFilter, RoundKind, RoundRecord,
    audit::bad_token,
    rows::{record, select_records},
    session::Session,
    sqlstate::Fail,
    text::bigint,
};

/// `<microseconds>.<round>` of the last round of a page.
pub(super) fn token(record: &RoundRecord) -> String {
    format!("{}.{}", record.created_at.timestamp_micros(), record.round.id)
}

pub(super) fn parse_token(token: Option<&str>) -> Result<Option<(DateTime<Utc>, Uuid)>, Fail> {
    let Some(token) = token.filter(|token| !token.is_empty()) else { return Ok(None) };
    let parsed = token.split_once('.').and_then(|(micros, id)| {
        let at = DateTime::from_timestamp_micros(micros.parse().ok()?)?;
        Some((at, id.parse::<RoundId>().ok()?.uuid()))
    });
    parsed.map_or_else(|| Err(bad_token(token).into()), |parsed| Ok(Some(parsed)))
}

pub(super) async fn list(
    connection: &mut Session,
    (filter, page): &(RoundFilter, Page),
) -> Result<Listed<RoundRecord>, Fail> {
    let before = parse_token(page.token.as_deref())?;
    let rows = sqlx::query(concat!(
        select_records!("rounds"),
        "WHERE ($1::uuid IS NULL OR r.pipeline_id = $1) AND (NOT $2 OR r.ended_at IS NULL)
           AND ($3::timestamptz IS NULL OR (r.created_at, r.id) < ($3, $4))
           AND ($6::text IS NULL OR r.kind = $6)
         ORDER BY r.created_at DESC, r.id DESC LIMIT $5"
    ))
    .bind(filter.pipeline.map(PipelineId::uuid))
    .bind(filter.active_only)
    .bind(before.map(|(at, _)| at))
    .bind(before.map(|(_, id)| id))
    .bind(page.limit())
    .bind(filter.kind.map(RoundKind::as_str))
    .fetch_all(connection)
    .await?;
    let items = rows.iter().map(record).collect::<Result<Vec<_>, _>>()?;
    let full = bigint(items.len() as u64) == page.limit();
    let next = items.last().filter(|_| full).map(token);
    Ok(Listed { items, next })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_page_token_is_refused() {
        for token in ["x", "1.x", "x.00000000-0000-0000-0000-000000000007", "1"] {
            assert!(parse_token(Some(token)).is_err(), "{token}");
        }
        assert!(parse_token(Some("")).unwrap().is_none());
        assert!(parse_token(Some("7.00000000-0000-0000-0000-000000000007")).unwrap().is_some());
    }
}
