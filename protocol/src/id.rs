//! Identifiers: each is a type of its own with a checked constructor, so that one can't stand where another belongs.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::problem::{Problem, Reason};

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID that was drawn or parsed elsewhere.
            pub const fn new(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID itself.
            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = Problem;

            /// Takes the hyphenated lower-case form only: one id has one spelling.
            fn from_str(text: &str) -> Result<Self, Problem> {
                match Uuid::try_parse(text) {
                    Ok(uuid) if uuid.hyphenated().to_string() == text => Ok(Self(uuid)),
                    _ => Err(Problem::new(
                        Reason::SpecInvalid,
                        format!(concat!($what, " {:?} is not a UUID in hyphenated lower-case form"), text),
                    )
                    .with("field", $what)
                    .with("value", text)),
                }
            }
        }
    };
}

uuid_id!(
    /// A pipeline's immutable identity; its name may change.
    PipelineId, "pipeline id");
uuid_id!(
    /// One push or pull round. A committed push round's id is also its checkpoint's id.
    RoundId, "round");
uuid_id!(
    /// One host's own checkpoint on its disk.
    LocalCheckpointId, "local checkpoint");
uuid_id!(
    /// Drawn by an agent at every process start: tells a restart from a slow answer.
    Incarnation, "incarnation");
uuid_id!(
    /// Idempotency key of a caller.
    RequestId, "request id");
uuid_id!(
    /// Minted by the first migration of a database: tells a restored or recreated database from the one that wrote a fence.
    DatabaseId, "database id");

/// Postgres keeps these numbers in `BIGINT`: what doesn't fit is refused where it enters (feldera-storage.md, catalog entry).
pub const MAX_NUMBER: u64 = i64::MAX as u64;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "u64", into = "u64")]
        pub struct $name(u64);

        impl $name {
            /// Refuses what a signed 64-bit column can't hold.
            pub fn new(value: u64) -> Result<Self, Problem> {
                if value > MAX_NUMBER {
                    return Err(Problem::new(
                        Reason::SpecInvalid,
                        format!(concat!($what, " {} is above the greatest allowed, {}"), value, MAX_NUMBER),
                    )
                    .with("field", $what)
                    .with("value", value)
                    .with("max", MAX_NUMBER));
                }
                Ok(Self(value))
            }

            /// The plain number.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// As a database column holds it. Lossless by construction.
            pub const fn as_i64(self) -> i64 {
                self.0.cast_signed()
            }

            /// The one after it; saturates at the greatest allowed.
            #[must_use]
            pub const fn next(self) -> Self {
                if self.0 < MAX_NUMBER { Self(self.0 + 1) } else { self }
            }
        }

        impl TryFrom<u64> for $name {
            type Error = Problem;
            fn try_from(value: u64) -> Result<Self, Problem> {
                Self::new(value)
            }
        }

        impl TryFrom<i64> for $name {
            type Error = Problem;
            fn try_from(value: i64) -> Result<Self, Problem> {
                u64::try_from(value).map_or_else(
                    |_| {
                        Err(Problem::new(Reason::SpecInvalid, format!(concat!($what, " {} is negative"), value))
                            .with("field", $what)
                            .with("value", value))
                    },
                    Self::new,
                )
            }
        }

        impl From<$name> for u64 {
            fn from(value: $name) -> u64 {
                value.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

number!(
    /// Per location; only rises; changes when the writer of a location changes. 0: owns no location.
    Generation, "generation");
number!(
    /// Place of a push round in the commit chain of its generation, from 1.
    Seq, "seq");
number!(
    /// Number of a round in its pipeline, from 1.
    RoundNo, "round_no");
number!(
    /// Per round; rises each time a coordinator replica claims it. From 1; 0: never claimed.
    Term, "term");
number!(
    /// The logical position all hosts share.
    Step, "step");

impl Generation {
    /// Before a pipeline owns a location.
    pub const NONE: Self = Self(0);
    /// The generation of a location's first owner.
    pub const FIRST: Self = Self(1);

    /// The one that it follows; of the first it is [`Generation::NONE`].
    #[must_use]
    pub const fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl Seq {
    /// The first push of a generation.
    pub const FIRST: Self = Self(1);

    /// The one before it; of 0 it is 0.
    #[must_use]
    pub const fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl RoundNo {
    /// The first round of a pipeline.
    pub const FIRST: Self = Self(1);
}

impl Term {
    /// Of a round that no replica has claimed yet.
    pub const NONE: Self = Self(0);
}

/// A numbered try of one host in one round, from 1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Attempt(u32);

impl Attempt {
    /// The first try.
    pub const FIRST: Self = Self(1);

    /// Attempts count from 1.
    pub fn new(value: u32) -> Result<Self, Problem> {
        if value == 0 {
            return Err(Problem::new(Reason::SpecInvalid, "attempt 0: attempts count from 1").with("attempt", 0));
        }
        Ok(Self(value))
    }

    /// The plain number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The following try.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl TryFrom<u32> for Attempt {
    type Error = Problem;
    fn try_from(value: u32) -> Result<Self, Problem> {
        Self::new(value)
    }
}

impl From<Attempt> for u32 {
    fn from(value: Attempt) -> u32 {
        value.0
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Fingerprint of the program that wrote a local checkpoint. Uses all 64 bits, so it travels as a decimal string and never through a
/// signed or floating number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Fingerprint(pub u64);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Fingerprint {
    type Err = Problem;
    fn from_str(text: &str) -> Result<Self, Problem> {
        match text.parse::<u64>() {
            Ok(value) if value.to_string() == text => Ok(Self(value)),
            _ => Err(Problem::new(
                Reason::SpecInvalid,
                format!("fingerprint {text:?} is not a decimal number of 64 bits"),
            )
            .with("field", "fingerprint")
            .with("value", text)),
        }
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A pipeline's name: 1 to 63 characters of `a-z`, `0-9` and `-`, beginning and ending with a letter or digit (RFC 1123 label, because
/// operators name Kubernetes objects after it).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PipelineName(String);

impl PipelineName {
    /// Checks the form.
    pub fn new(name: impl Into<String>) -> Result<Self, Problem> {
        let name = name.into();
        let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let bytes = name.as_bytes();
        let good = (1..=63).contains(&bytes.len())
            && bytes.iter().all(|&c| inner(c) || c == b'-')
            && bytes.first().copied().is_some_and(inner)
            && bytes.last().copied().is_some_and(inner)
            // A name that is a UUID could not be told from an id.
            && Uuid::try_parse(&name).is_err();
        if good {
            return Ok(Self(name));
        }
        Err(Problem::new(
            Reason::SpecInvalid,
            format!(
                "name {name:?}: a pipeline's name has 1 to 63 characters of a-z, 0-9 and -, begins and ends with a letter or \
                 digit, and is not a UUID"
            ),
        )
        .with("field", "name")
        .with("value", name))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PipelineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for PipelineName {
    type Error = Problem;
    fn try_from(value: String) -> Result<Self, Problem> {
        Self::new(value)
    }
}

impl From<PipelineName> for String {
    fn from(value: PipelineName) -> String {
        value.0
    }
}
