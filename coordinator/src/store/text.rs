//! Text and JSON as Postgres takes them: it has no NUL character, and a message from outside may hold one. A round must not become
//! unwritable by what an agent reports.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::sqlstate::Fail;

/// The text with NULs made visible.
pub(super) fn text(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// The value for a jsonb column.
pub(super) fn json<T: Serialize>(value: &T) -> Result<Value, Fail> {
    let mut value =
        serde_json::to_value(value).map_err(|error| Fail::Unreadable(format!("a value is no JSON: {error}")))?;
    clean(&mut value);
    Ok(value)
}

/// The same for a nullable column.
pub(super) fn optional_json<T: Serialize>(value: Option<&T>) -> Result<Option<Value>, Fail> {
    value.map(json).transpose()
}

/// Back from a jsonb column.
pub(super) fn from_json<T: DeserializeOwned>(what: &str, value: Value) -> Result<T, Fail> {
    serde_json::from_value(value).map_err(|error| Fail::Unreadable(format!("{what} of a row is not readable: {error}")))
}

/// What comes back from a jsonb column that this was written to.
pub(super) fn as_read<T: Serialize + DeserializeOwned>(value: T) -> T {
    // As JSON writes a NUL. Nearly always there is none, and every write of a round comes by here.
    if serde_json::to_string(&value).is_ok_and(|text| !text.contains("\\u0000")) {
        return value;
    }
    let read = json(&value).and_then(|json| from_json("a value", json));
    read.unwrap_or(value)
}

/// A number for a bigint column; the types of `protocol` never exceed it.
pub(super) fn bigint(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn clean(value: &mut Value) {
    match value {
        Value::String(string) if string.contains('\0') => *string = text(string),
        Value::Array(items) => items.iter_mut().for_each(clean),
        Value::Object(map) => {
            if map.keys().any(|key| key.contains('\0')) {
                *map = std::mem::take(map).into_iter().map(|(key, value)| (text(&key), value)).collect();
            }
            map.values_mut().for_each(clean);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nul_characters_are_made_visible_at_every_depth() {
        let value = json(&serde_json::json!({"a\0": ["x\0y", {"b": "\0"}], "n": 1})).unwrap();
        let clean = serde_json::json!({"a\u{fffd}": ["x\u{fffd}y", {"b": "\u{fffd}"}], "n": 1});
        assert_eq!(value, clean);
        assert_eq!(as_read(serde_json::json!({"a\0": ["x\0y", {"b": "\0"}], "n": 1})), clean);
        assert_eq!(as_read(clean.clone()), clean);
    }
}
