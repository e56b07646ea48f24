//! Every object key of a location, built and parsed back here and nowhere else (protocol.md, "Layout of a location").
//!
//! Keys are relative to the location's prefix. `Key::parse` is the exact inverse of `Display`: what it accepts is printed back byte by byte.

use std::{fmt, str::FromStr};

use uuid::Uuid;

use crate::{
    host::{MAX_HOSTS, Slot},
    id::{Attempt, Generation, Incarnation, RoundId, Seq},
    planted::{self, Bug},
};

/// Names one attempt of one host: no two attempts ever write one key (S7).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct AttemptPath {
    /// None: solo.
    pub host_idx: Option<u32>,
    /// Of the location when the round was admitted.
    pub generation: Generation,
    /// The push round.
    pub round: RoundId,
    /// The agent process that writes.
    pub incarnation: Incarnation,
    /// Its try.
    pub attempt: Attempt,
}

impl AttemptPath {
    /// Where this attempt of this slot writes.
    pub const fn new(
        slot: Slot,
        generation: Generation,
        round: RoundId,
        incarnation: Incarnation,
        attempt: Attempt,
    ) -> Self {
        let host_idx = match slot {
            Slot::Solo => None,
            Slot::Host(info) => Some(info.host_idx()),
        };
        Self { host_idx, generation, round, incarnation, attempt }
    }

    /// Key of its part manifest, written last.
    pub const fn manifest(self) -> Key {
        Key::PartManifest(self)
    }

    /// What keys of all attempts of the same process at the same round begin with, and no others.
    pub fn all_of_process(self) -> String {
        format!("{}{}/{}/{}-", Owner(self.host_idx), self.generation, self.round, self.incarnation)
    }

    /// Key of its n-th data object.
    pub const fn data(self, number: u32) -> Key {
        Key::Data(self, number)
    }
}

impl fmt::Display for AttemptPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Planted: one key for all attempts.
        let attempt = if planted::is(Bug::AttemptNotInKeys) { Attempt::FIRST } else { self.attempt };
        write!(f, "{}{attempt}/", self.all_of_process())
    }
}

/// The folder of a host, or of a pipeline that is solo.
struct Owner(Option<u32>);

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("solo/"),
            Some(idx) => write!(f, "host{idx}/"),
        }
    }
}

/// An object key of a location.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Key {
    /// `lockstep.json`: format version and features; create-only.
    Format,
    /// `fences/<generation>.json`: who owns the location from here.
    Fence(Generation),
    /// `fences/<generation>.base.json`: the last older commit that counts.
    FenceBase(Generation),
    /// `commits/<generation>-<seq>.json`: the decision of that push round.
    Commit(Generation, Seq),
    /// `retired/<generation>-<seq>.json`: tombstone.
    Retired(Generation, Seq),
    /// `damaged/<generation>-<seq>.json`: found broken.
    Damaged(Generation, Seq),
    /// `pins/<name>-<uuid>.json`: keeps one checkpoint from retention.
    Pin(String, Uuid),
    /// `head.json`: hint where to start listing.
    Head,
    /// `host<idx>/.../part.json`: one part manifest.
    PartManifest(AttemptPath),
    /// `host<idx>/.../data-<n>`: one data object.
    Data(AttemptPath, u32),
    /// `probe/<uuid>/<n>`: what a probe of the store writes; never part of anything, may be deleted at any time.
    Probe(Uuid, u32),
}

impl Key {
    /// Folder of all fences and their bases.
    pub const FENCES: &'static str = "fences/";
    /// Folder of all decisions.
    pub const COMMITS: &'static str = "commits/";
    /// Folder of all tombstones.
    pub const RETIRED: &'static str = "retired/";
    /// Folder of all damage marks.
    pub const DAMAGED: &'static str = "damaged/";
    /// Folder of all pins.
    pub const PINS: &'static str = "pins/";
    /// What keys of every attempt of every host begin with.
    pub const HOSTS: &'static str = "host";
    /// The same of pipelines that are solo.
    pub const SOLO: &'static str = "solo/";
    /// Folder of what probes wrote.
    pub const PROBES: &'static str = "probe/";

    /// What every decision key of one generation begins with.
    pub fn commits_of(generation: Generation) -> String {
        format!("{}{:020}-", Self::COMMITS, generation.get())
    }

    /// What every key of one slot begins with, the slash included.
    pub fn slot_prefix(slot: Slot) -> String {
        slot.prefix()
    }

    /// What every key of this kind begins with: its folder, the slash included; of an attempt [`Self::HOSTS`] or [`Self::SOLO`]; empty: it stands in no folder.
    pub const fn prefix(&self) -> &'static str {
        match self {
            Self::Format | Self::Head => "",
            Self::Fence(_) | Self::FenceBase(_) => Self::FENCES,
            Self::Commit(..) => Self::COMMITS,
            Self::Retired(..) => Self::RETIRED,
            Self::Damaged(..) => Self::DAMAGED,
            Self::Pin(..) => Self::PINS,
            Self::PartManifest(AttemptPath { host_idx, .. }) | Self::Data(AttemptPath { host_idx, .. }, _) => {
                if host_idx.is_some() {
                    Self::HOSTS
                } else {
                    Self::SOLO
                }
            }
            Self::Probe(..) => Self::PROBES,
        }
    }

    /// What to list after so that this key is the first of its kind, those that follow come too, and none before it does: text that it begins with, which sorts before it.
    /// Between the two stands at most what belongs to it: of a fence its base. Defined for documents, whose keys end in `.json`; none: of another object.
    pub fn list_after(&self) -> Option<String> {
        self.to_string().strip_suffix(".json").map(str::to_owned)
    }

    /// Parses a relative key; None: not one of Lockstep's.
    pub fn parse(text: &str) -> Option<Self> {
        let key = parse_loosely(text)?;
        // One key, one spelling: leading zeros, capitals and signs that number parsers let through are refused here.
        (key.to_string() == text).then_some(key)
    }
}

fn parse_loosely(text: &str) -> Option<Key> {
    match text {
        "lockstep.json" => return Some(Key::Format),
        "head.json" => return Some(Key::Head),
        _ => {}
    }
    let (folder, rest) = text.split_once('/')?;
    match folder {
        "fences" => {
            if let Some(number) = rest.strip_suffix(".base.json") {
                return Some(Key::FenceBase(generation(number)?));
            }
            Some(Key::Fence(generation(rest.strip_suffix(".json")?)?))
        }
        "commits" => pair(rest).map(|(g, s)| Key::Commit(g, s)),
        "retired" => pair(rest).map(|(g, s)| Key::Retired(g, s)),
        "damaged" => pair(rest).map(|(g, s)| Key::Damaged(g, s)),
        "pins" => {
            let stem = rest.strip_suffix(".json")?;
            // The UUID has 36 bytes and contains hyphens itself, so it is cut off from the end.
            let at = stem.len().checked_sub(37)?;
            let (name, uuid) = (stem.get(..at)?, stem.get(at..)?.strip_prefix('-')?);
            let plain = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
            if name.is_empty() || !name.bytes().all(plain) {
                return None;
            }
            Some(Key::Pin(name.to_owned(), Uuid::try_parse(uuid).ok()?))
        }
        "probe" => {
            let (uuid, number) = rest.split_once('/')?;
            Some(Key::Probe(Uuid::try_parse(uuid).ok()?, number.parse().ok()?))
        }
        _ => attempt_key(folder, rest),
    }
}

fn generation(text: &str) -> Option<Generation> {
    Generation::new(text.parse().ok()?).ok()
}

fn pair(text: &str) -> Option<(Generation, Seq)> {
    let (g, s) = text.strip_suffix(".json")?.split_once('-')?;
    Some((generation(g)?, Seq::new(s.parse().ok()?).ok()?))
}

fn attempt_key(folder: &str, rest: &str) -> Option<Key> {
    let host_idx = match folder {
        "solo" => None,
        _ => Some(folder.strip_prefix("host")?.parse::<u32>().ok().filter(|&idx| idx < MAX_HOSTS)?),
    };
    let mut parts = rest.splitn(4, '/');
    let generation = generation(parts.next()?)?;
    let round = RoundId::from_str(parts.next()?).ok()?;
    let (incarnation, attempt) = parts.next()?.rsplit_once('-')?;
    let path = AttemptPath {
        host_idx,
        generation,
        round,
        incarnation: Incarnation::from_str(incarnation).ok()?,
        attempt: Attempt::new(attempt.parse().ok()?).ok()?,
    };
    match parts.next()? {
        "part.json" => Some(Key::PartManifest(path)),
        name => Some(Key::Data(path, name.strip_prefix("data-")?.parse().ok()?)),
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Format => f.write_str("lockstep.json"),
            Self::Head => f.write_str("head.json"),
            Self::Fence(g) => write!(f, "fences/{:020}.json", g.get()),
            Self::FenceBase(g) => write!(f, "fences/{:020}.base.json", g.get()),
            Self::Commit(g, s) => write!(f, "commits/{:020}-{:020}.json", g.get(), s.get()),
            Self::Retired(g, s) => write!(f, "retired/{:020}-{:020}.json", g.get(), s.get()),
            Self::Damaged(g, s) => write!(f, "damaged/{:020}-{:020}.json", g.get(), s.get()),
            Self::Pin(name, uuid) => write!(f, "pins/{name}-{uuid}.json"),
            Self::PartManifest(path) => write!(f, "{path}part.json"),
            Self::Data(path, number) => write!(f, "{path}data-{number}"),
            Self::Probe(uuid, number) => write!(f, "probe/{uuid}/{number}"),
        }
    }
}

impl FromStr for Key {
    type Err = crate::problem::Problem;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text).ok_or_else(|| {
            crate::problem::Problem::new(
                crate::problem::Reason::ManifestInvalid,
                format!("object key {text:?} is not one that lockstep builds"),
            )
            .with("key", text)
        })
    }
}
