//! Bad values for every field of a message, found by its descriptor, so that a field which is added later is tried without further ado.
//!
//! A field appended to a good message replaces the one before, or is merged into it: so each case is the good message with one thing wrong.

use std::{collections::BTreeMap, sync::LazyLock};

use prost::Message as _;
use prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorSet, MethodDescriptorProto,
    field_descriptor_proto::{Label, Type},
};

/// Messages within messages, so deep.
const DEPTH: usize = 3;

struct Described {
    messages: BTreeMap<String, DescriptorProto>,
    services: BTreeMap<String, Vec<MethodDescriptorProto>>,
}

/// The very bytes that the servers' reflection serves.
static DESCRIBED: LazyLock<Described> = LazyLock::new(|| {
    let set = FileDescriptorSet::decode(lockstep_proto::FILE_DESCRIPTOR_SET).unwrap();
    let mut described = Described { messages: BTreeMap::new(), services: BTreeMap::new() };
    for file in set.file {
        let package = file.package().to_owned();
        for message in file.message_type {
            described.messages.insert(format!(".{package}.{}", message.name()), message);
        }
        for service in file.service {
            described.services.insert(service.name().to_owned(), service.method);
        }
    }
    described
});

/// `Service/Method` and the name of its request, of every method.
pub(crate) fn methods(service: &str) -> Vec<(String, String)> {
    let named =
        |method: &MethodDescriptorProto| (format!("{service}/{}", method.name()), method.input_type().to_owned());
    DESCRIBED.services[service].iter().map(named).collect()
}

/// One thing wrong.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) message: Vec<u8>,
}

/// A good message with one thing wrong, for everything that can be wrong with it.
pub(crate) fn cases(request: &str, good: &[u8]) -> Vec<Case> {
    let mut cases = vec![
        Case { name: "nothing at all".to_owned(), message: Vec::new() },
        Case { name: "no message".to_owned(), message: vec![0xff; 64] },
        Case { name: "cut off".to_owned(), message: good[..good.len().saturating_sub(1)].to_vec() },
        Case { name: "a field nobody knows".to_owned(), message: [good, &length_delimited(9_999, b"?")].concat() },
        Case { name: "groups in groups".to_owned(), message: [good, &[0xfb, 0x7f].repeat(10_000)].concat() },
    ];
    let add = |(name, field): (String, Vec<u8>)| Case { name, message: [good, &field].concat() };
    cases.extend(bad_fields(request, DEPTH).into_iter().map(add));
    cases.extend(without(request, good, DEPTH).into_iter().map(|(name, message)| Case { name, message }));
    cases
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn tag(field: i32, wire: u64) -> Vec<u8> {
    varint((field as u64) << 3 | wire)
}

fn number(field: i32, value: u64) -> Vec<u8> {
    [tag(field, 0), varint(value)].concat()
}

pub(crate) fn length_delimited(field: i32, bytes: &[u8]) -> Vec<u8> {
    [tag(field, 2), varint(bytes.len() as u64), bytes.to_vec()].concat()
}

const FOREIGN: &str = "ffffffff-ffff-4fff-8fff-ffffffffffff";

/// Name and bytes of every bad field of a message.
fn bad_fields(message: &str, depth: usize) -> Vec<(String, Vec<u8>)> {
    let Some(described) = DESCRIBED.messages.get(message) else { return Vec::new() };
    described.field.iter().flat_map(|field| bad_values(field, depth)).collect()
}

fn bad_values(field: &FieldDescriptorProto, depth: usize) -> Vec<(String, Vec<u8>)> {
    let (no, name) = (field.number(), field.name());
    let named = |what: &str, bytes: Vec<u8>| (format!("{name}: {what}"), bytes);
    let mut bad = match field.r#type() {
        Type::String => vec![
            named("empty", length_delimited(no, b"")),
            named("not UTF-8", length_delimited(no, &[b'a', 0xff, 0xfe])),
            named("with a NUL", length_delimited(no, b"or\0ders")),
            named("oversize", length_delimited(no, &[b'x'; 70_000])),
            named("a path upwards", length_delimited(no, b"../../../etc/passwd")),
            named("somebody else's id", length_delimited(no, FOREIGN.as_bytes())),
            named("an id in capitals", length_delimited(no, FOREIGN.to_uppercase().as_bytes())),
            named("a number", number(no, 7)),
        ],
        Type::Int32 | Type::Int64 => vec![
            named("-1", number(no, u64::MAX)),
            named("the least", number(no, i32::MIN as i64 as u64)),
            named("the greatest", number(no, i32::MAX as u64)),
            named("above 32 bits", number(no, u64::MAX >> 1)),
            named("a text", length_delimited(no, b"7")),
        ],
        Type::Uint32 | Type::Uint64 => vec![
            named("0", number(no, 0)),
            named("the greatest of 32 bits", number(no, u64::from(u32::MAX))),
            named("the greatest of a BIGINT", number(no, i64::MAX as u64)),
            named("one above that", number(no, 1 << 63)),
            named("the greatest", number(no, u64::MAX)),
            named("a text", length_delimited(no, b"7")),
        ],
        Type::Enum => vec![
            named("99", number(no, 99)),
            named("-1", number(no, u64::MAX)),
            named("the greatest", number(no, i32::MAX as u64)),
        ],
        Type::Bool => vec![named("2", number(no, 2)), named("a text", length_delimited(no, b"true"))],
        Type::Message => {
            let inner = if depth == 0 { Vec::new() } else { bad_fields(field.type_name(), depth - 1) };
            let mut bad = vec![
                named("no message", length_delimited(no, &[0xff; 16])),
                named("a number", number(no, 7)),
                named("longer than it is", [tag(no, 2), varint(1 << 40)].concat()),
            ];
            bad.extend(inner.into_iter().map(|(what, bytes)| (format!("{name}.{what}"), length_delimited(no, &bytes))));
            bad
        }
        other => panic!("{name}: no bad values for {other:?} yet"),
    };
    if field.label() == Label::Repeated {
        let many = bad.first().map(|(_, one)| one.repeat(10_000)).unwrap_or_default();
        bad.push(named("ten thousand", many));
    }
    bad
}

/// The chunks of a message, field by field.
fn chunks(mut bytes: &[u8]) -> Vec<(i32, &[u8])> {
    fn varint(bytes: &[u8]) -> (u64, usize) {
        let length = bytes.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
        (bytes[..length].iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f)), length)
    }
    let mut chunks = Vec::new();
    while !bytes.is_empty() {
        let (tag, mut length) = varint(bytes);
        match tag & 7 {
            0 => length += varint(&bytes[length..]).1,
            2 => {
                let (inner, prefix) = varint(&bytes[length..]);
                length += prefix + inner as usize;
            }
            wire => panic!("wire type {wire} in a good message"),
        }
        chunks.push(((tag >> 3) as i32, &bytes[..length]));
        bytes = &bytes[length..];
    }
    chunks
}

/// The good message without one of its fields, and with one of them twice.
fn without(message: &str, good: &[u8], depth: usize) -> Vec<(String, Vec<u8>)> {
    let Some(described) = DESCRIBED.messages.get(message) else { return Vec::new() };
    let chunks = chunks(good);
    let mut found = Vec::new();
    for (left_out, (no, chunk)) in chunks.iter().enumerate() {
        let Some(field) = described.field.iter().find(|field| field.number() == *no) else { continue };
        let rest = |between: &[u8]| {
            let parts = chunks.iter().enumerate().map(|(at, (_, chunk))| if at == left_out { between } else { *chunk });
            parts.collect::<Vec<_>>().concat()
        };
        found.push((format!("{}: missing", field.name()), rest(&[])));
        found.push((format!("{}: twice", field.name()), rest(&chunk.repeat(2))));
        if field.r#type() == Type::Message && depth > 0 {
            let inner = &chunk[chunk.len() - inner_length(chunk)..];
            for (what, bytes) in without(field.type_name(), inner, depth - 1) {
                found.push((format!("{}.{what}", field.name()), rest(&length_delimited(*no, &bytes))));
            }
        }
    }
    found
}

/// Bytes of a length-delimited chunk without its tag and length.
fn inner_length(chunk: &[u8]) -> usize {
    let after_tag = chunk.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
    let length = chunk[after_tag..].iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
    chunk.len() - after_tag - length
}
