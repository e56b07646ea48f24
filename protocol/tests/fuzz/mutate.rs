//! Inputs that are nearly right: a good one with a few things wrong, in its structure where it has one and in its bytes.

use serde_json::{Map, Number, Value, json};

/// SplitMix64: the same seed makes the same input for good.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        (self.roll() % end as u64) as usize
    }

    fn pick<'t, T>(&mut self, from: &'t [T]) -> &'t T {
        &from[self.below(from.len())]
    }
}

const TEXTS: &[&str] = &[
    "",
    ".",
    "..",
    "/",
    "a/../b",
    "../../etc/passwd",
    "/etc/passwd",
    "a//b",
    "a/./b",
    "a\0b",
    "C:\\x",
    "~",
    "%2e%2e/",
    "a/",
    " ",
    "\u{202e}",
    "é",
    "ﬁ",
    "\u{0}",
    "host1/",
    "solo/",
    "host10/1/",
    "commits/00000000000000000001-00000000000000000001.json",
    "00000000-0000-0000-0000-000000000000",
    "FFFFFFFF-FFFF-4FFF-8FFF-FFFFFFFFFFFF",
    "18446744073709551615",
    "18446744073709551616",
    "-1",
    "+1",
    "01",
    "1e3",
    "0x10",
    "NaN",
    "null",
    "true",
    "latest",
    "16MiB",
    "99999999999999999999TiB",
    "2m",
    "-2m",
    "292277026596y",
    "http://[::1]:1",
    "http://user@host:1",
    "s3://acme-ckpt/orders",
    "file:///etc",
    "9999-12-31T23:59:60Z",
    "-9999-01-01T00:00:00Z",
    "+262143-12-31T23:59:59Z",
    "full",
    "part",
    "commit",
    "abort",
];

const NUMBERS: &[&str] = &[
    "0",
    "1",
    "2",
    "-1",
    "255",
    "256",
    "4095",
    "4096",
    "4097",
    "65535",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e400",
    "0.5",
    "-0",
    "1.0",
    "1e2",
];

fn hostile(dice: &mut Dice) -> Value {
    match dice.below(8) {
        0 => Value::Null,
        1 => json!(dice.roll() & 1 == 0),
        2 | 3 => number(dice),
        4 => json!("x".repeat(1 << dice.below(13))),
        5 => json!([]),
        6 => {
            let mut deep = json!(1);
            for _ in 0..dice.below(160) {
                deep = if dice.roll() & 1 == 0 { json!([deep]) } else { json!({"a": deep}) };
            }
            deep
        }
        _ => json!(*dice.pick::<&str>(TEXTS)),
    }
}

fn number(dice: &mut Dice) -> Value {
    serde_json::from_str::<Number>(dice.pick::<&str>(NUMBERS)).map_or(Value::Null, Value::Number)
}

/// A good input, changed.
pub(crate) fn mutated(dice: &mut Dice, good: &[Vec<u8>]) -> Vec<u8> {
    let mut input = dice.pick(good).clone();
    // Most have one thing wrong: with many, the first check refuses and the others are never reached.
    let changes = [1, 1, 1, 2, 3, 8][dice.below(6)];
    match serde_json::from_slice::<Value>(&input) {
        Ok(mut value) if dice.below(4) > 0 => {
            for _ in 0..changes {
                change(dice, &mut value);
            }
            input = serde_json::to_vec(&value).unwrap_or_default();
        }
        _ => {
            for _ in 0..changes {
                change_bytes(dice, &mut input, good);
            }
        }
    }
    input
}

/// One thing wrong somewhere in a document.
fn change(dice: &mut Dice, value: &mut Value) {
    let nodes = count(value);
    let mut at = dice.below(nodes);
    if let Some(node) = find(value, &mut at) {
        change_node(dice, node);
    }
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum(),
        _ => 0,
    }
}

fn find<'v>(value: &'v mut Value, at: &mut usize) -> Option<&'v mut Value> {
    if *at == 0 {
        return Some(value);
    }
    *at -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| find(item, at)),
        Value::Object(fields) => fields.values_mut().find_map(|item| find(item, at)),
        _ => None,
    }
}

fn change_node(dice: &mut Dice, node: &mut Value) {
    match (dice.below(6), node) {
        (0, node) => *node = hostile(dice),
        (1, Value::Object(fields)) if !fields.is_empty() => {
            let name = fields.keys().nth(dice.below(fields.len())).cloned().unwrap_or_default();
            let taken = fields.remove(&name);
            if let Some(taken) = taken.filter(|_| dice.below(2) == 0) {
                fields.insert(dice.pick::<&str>(TEXTS).to_string(), taken);
            }
        }
        (2, Value::Object(fields)) => {
            let value = hostile(dice);
            fields.insert(dice.pick::<&str>(TEXTS).to_string(), value);
        }
        (1 | 2, Value::Array(items)) if !items.is_empty() => {
            let (from, to) = (dice.below(items.len()), dice.below(items.len() + 1));
            let item = items[from].clone();
            items.insert(to, item);
        }
        (3, Value::Array(items)) if !items.is_empty() => {
            items.remove(dice.below(items.len()));
        }
        (4, Value::Array(items)) if items.len() > 1 => {
            let (a, b) = (dice.below(items.len()), dice.below(items.len()));
            items.swap(a, b);
        }
        (3 | 4, Value::Object(fields)) if fields.len() > 1 => swap(dice, fields),
        (_, Value::String(text)) => change_text(dice, text),
        (_, number @ Value::Number(_)) => *number = self::number(dice),
        (_, node) => *node = hostile(dice),
    }
}

fn swap(dice: &mut Dice, fields: &mut Map<String, Value>) {
    let (a, b) = (dice.below(fields.len()), dice.below(fields.len()));
    let values: Vec<Value> = fields.values().cloned().collect();
    for (at, value) in fields.values_mut().enumerate() {
        *value = values[if at == a {
            b
        } else if at == b {
            a
        } else {
            at
        }]
        .clone();
    }
}

fn change_text(dice: &mut Dice, text: &mut String) {
    let at = (0..=dice.below(text.len() + 1)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    match dice.below(5) {
        0 => *text = dice.pick::<&str>(TEXTS).to_string(),
        1 => text.insert_str(at, dice.pick::<&str>(TEXTS)),
        2 => text.truncate(at),
        3 => *text = text.to_uppercase(),
        _ => {
            let digit = char::from(b'0' + (dice.roll() % 10) as u8);
            text.insert(at, digit);
        }
    }
}

fn change_bytes(dice: &mut Dice, input: &mut Vec<u8>, good: &[Vec<u8>]) {
    let at = dice.below(input.len() + 1);
    match dice.below(7) {
        0 => input.truncate(at),
        1 => input.insert(at, dice.roll() as u8),
        2 => {
            let text = dice.pick::<&str>(TEXTS).as_bytes().to_vec();
            input.splice(at..at, text);
        }
        3 => {
            let other = dice.pick(good);
            let from = dice.below(other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        4 => {
            let end = (at + dice.below(64)).min(input.len());
            let piece = input[at..end].to_vec();
            input.splice(at..at, piece);
        }
        5 if at < input.len() => {
            input.remove(at);
        }
        _ if at < input.len() => input[at] ^= 1 << dice.below(8),
        _ => input.push(b' '),
    }
}
