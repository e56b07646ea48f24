//! Durations and sizes as specs carry them: always with a unit.

use std::time::Duration;

use crate::problem::{Problem, Reason};

fn refuse(field: &str, value: &str, why: &str) -> Problem {
    Problem::new(Reason::SpecInvalid, format!("{field} {value:?} {why}")).with("field", field).with("value", value)
}

/// `2m`, `10s`, `30d`, `1h 30m`.
pub fn duration(field: &str, text: &str) -> Result<Duration, Problem> {
    if text.trim().bytes().all(|c| c.is_ascii_digit() || c == b'.') {
        return Err(refuse(field, text, "has no unit: write for example 10s, 2m, 1h or 30d"));
    }
    humantime::parse_duration(text.trim())
        .map_err(|e| refuse(field, text, &format!("is no duration ({e}): write for example 10s, 2m, 1h or 30d")))
}

/// Prints what [`duration`] parses.
pub fn show_duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

const UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

/// `16MiB`, `64 MiB`, `500MB`, `4096B`: whole numbers with a unit.
pub fn size(field: &str, text: &str) -> Result<u64, Problem> {
    const HOW: &str = "write a whole number with B, KiB, MiB, GiB, TiB, KB, MB, GB or TB, for example 16MiB";
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim();
    if unit.is_empty() {
        return Err(refuse(field, text, &format!("has no unit: {HOW}")));
    }
    let factor = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
    factor
        .zip(number.parse::<u64>().ok())
        .and_then(|(factor, number)| number.checked_mul(factor))
        .filter(|&bytes| bytes <= crate::id::MAX_NUMBER)
        .ok_or_else(|| refuse(field, text, &format!("is no size: {HOW}")))
}

/// Prints what [`size`] parses, in the largest binary unit that divides it.
pub fn show_size(bytes: u64) -> String {
    UNITS
        .iter()
        .filter(|(name, _)| name.ends_with("iB"))
        .rev()
        .find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor))
        .map_or_else(|| format!("{bytes}B"), |(name, factor)| format!("{}{name}", bytes / factor))
}
