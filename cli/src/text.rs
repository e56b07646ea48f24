//! Sizes, times and tables for people.

use std::time::Duration;

use chrono::{DateTime, Local, Utc};
use comfy_table::{Table, presets};
use prost_types::Timestamp;

/// What stands where there is no value.
pub(crate) const NONE: &str = "-";

/// `17 B`, `4.2 MiB`, `512 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    // 1023.5 would be shown as "1024".
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = if unit == 0 || value >= 99.95 { 0 } else { 1 };
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// `340 ms`, `4.2 s`, `3m 12s`, `2h 5m`, `6d 1h`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..60 => format!("{:.1} s", duration.as_secs_f64()),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// The moment a timestamp names; none if it is outside of what calendars know.
pub(crate) fn moment(timestamp: &Timestamp) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(timestamp.seconds, u32::try_from(timestamp.nanos).ok()?)
}

/// Local time and how long ago: `2026-11-23 05:12:03 (4m 2s ago)`.
pub(crate) fn time(timestamp: Option<&Timestamp>) -> String {
    time_as_of(timestamp, Utc::now())
}

fn time_as_of(timestamp: Option<&Timestamp>, now: DateTime<Utc>) -> String {
    let Some(time) = timestamp.and_then(moment) else { return NONE.to_owned() };
    let distance = now.signed_duration_since(time);
    let shown = match distance.num_seconds().unsigned_abs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds => duration(Duration::from_secs(seconds)),
    };
    let relative = match distance.num_seconds() {
        0 => "now".to_owned(),
        ..0 => format!("in {shown}"),
        _ => format!("{shown} ago"),
    };
    format!("{} ({relative})", time.with_timezone(&Local).format("%Y-%m-%d %H:%M:%S"))
}

/// Time from one to the other, or until now.
pub(crate) fn took(from: Option<&Timestamp>, to: Option<&Timestamp>) -> Option<Duration> {
    let from = moment(from?)?;
    let to = to.map_or_else(|| Some(Utc::now()), moment)?;
    to.signed_duration_since(from).to_std().ok()
}

/// `text`, or the mark of none if it is empty.
pub(crate) fn or_none(text: &str) -> &str {
    if text.is_empty() { NONE } else { text }
}

/// Columns and nothing else.
pub(crate) fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.map(str::to_owned));
    table.add_rows(rows);
    aligned(table)
}

/// One `key  value` line each.
pub(crate) fn pairs(rows: impl IntoIterator<Item = (&'static str, String)>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.add_rows(rows.into_iter().map(|(key, value)| [key.to_owned(), value]));
    aligned(table)
}

fn aligned(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_at_most_three_digits_before_the_unit_changes() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (4_404_019, "4.2 MiB"),
            (512 << 20, "512 MiB"),
            ((1 << 30) - 1, "1.0 GiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn durations_have_two_units_at_most() {
        for (millis, text) in
            [(7, "7 ms"), (4_230, "4.2 s"), (192_000, "3m 12s"), (7_500_000, "2h 5m"), (522_000_000, "6d 1h")]
        {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn times_say_how_long_ago_or_in_how_long() {
        let now = DateTime::from_timestamp(1_000_000, 0).unwrap();
        let at = |seconds| time_as_of(Some(&Timestamp { seconds, nanos: 0 }), now);
        assert!(at(999_940).ends_with(" (1m 0s ago)"), "{}", at(999_940));
        assert!(at(1_000_005).ends_with(" (in 5 s)"), "{}", at(1_000_005));
        assert!(at(1_000_000).ends_with(" (now)"));
        assert_eq!(time_as_of(None, now), "-");
    }

    #[test]
    fn tables_are_aligned_columns_without_lines() {
        let text = table(["NAME", "STEP"], [["orders".into(), "7".into()], ["a".into(), "12".into()]]);
        assert_eq!(text, "NAME    STEP\norders  7\na       12");
        assert_eq!(pairs([("id", "x".into()), ("phase", "failed".into())]), "id     x\nphase  failed");
    }
}
