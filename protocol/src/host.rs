//! Hosts and layouts. A malformed `HostInfo` can't be built, so a malformed prefix can't reach S3 (protocol.md, "Layout of a location").

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::problem::{Problem, Reason};

/// Hosts a layout may have at most. Generous: the row count of a round and the size of a commit document are linear in it.
pub const MAX_HOSTS: u32 = 4096;

/// Which host of a multi-host layout. `host_idx < n_hosts` always holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "RawHostInfo")]
pub struct HostInfo {
    host_idx: u32,
    n_hosts: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHostInfo {
    host_idx: u32,
    n_hosts: u32,
}

impl TryFrom<RawHostInfo> for HostInfo {
    type Error = Problem;
    fn try_from(raw: RawHostInfo) -> Result<Self, Problem> {
        Self::new(raw.host_idx, raw.n_hosts)
    }
}

impl HostInfo {
    /// Refuses `n_hosts` 0 or above [`MAX_HOSTS`], and `host_idx >= n_hosts`.
    pub fn new(host_idx: u32, n_hosts: u32) -> Result<Self, Problem> {
        let refuse = |why: String| {
            Err(Problem::new(Reason::HostInfoInvalid, why).with("host_idx", host_idx).with("n_hosts", n_hosts))
        };
        if n_hosts == 0 {
            return refuse(format!("host_idx {host_idx} of n_hosts 0: a multi-host layout has at least one host"));
        }
        if n_hosts > MAX_HOSTS {
            return refuse(format!("n_hosts {n_hosts} is above the greatest allowed, {MAX_HOSTS}"));
        }
        if host_idx >= n_hosts {
            return refuse(format!("host_idx {host_idx} is not below n_hosts {n_hosts}"));
        }
        Ok(Self { host_idx, n_hosts })
    }

    /// Below `n_hosts`.
    pub const fn host_idx(self) -> u32 {
        self.host_idx
    }

    /// At least 1.
    pub const fn n_hosts(self) -> u32 {
        self.n_hosts
    }
}

impl fmt::Display for HostInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "host {} of {}", self.host_idx, self.n_hosts)
    }
}

/// How many hosts a pipeline has. Solo is one host without any `HostInfo`; it is not the same as one host of one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// One host and no `HostInfo` at all.
    Solo,
    /// This many hosts, at least 1.
    Hosts(HostCount),
}

/// Number of hosts of a multi-host layout, 1 to [`MAX_HOSTS`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct HostCount(u32);

impl TryFrom<u32> for HostCount {
    type Error = Problem;
    fn try_from(n_hosts: u32) -> Result<Self, Problem> {
        HostInfo::new(0, n_hosts).map(|info| Self(info.n_hosts()))
    }
}

impl From<HostCount> for u32 {
    fn from(count: HostCount) -> u32 {
        count.0
    }
}

impl Layout {
    /// A multi-host layout.
    pub fn hosts(n_hosts: u32) -> Result<Self, Problem> {
        HostCount::try_from(n_hosts).map(Self::Hosts)
    }

    /// Slots to serve: 1 for solo.
    pub const fn len(self) -> u32 {
        match self {
            Self::Solo => 1,
            Self::Hosts(HostCount(n)) => n,
        }
    }

    /// A layout always has a host.
    pub const fn is_empty(self) -> bool {
        false
    }

    /// `n_hosts` as documents and messages carry it: 0 for solo.
    pub const fn n_hosts(self) -> u32 {
        match self {
            Self::Solo => 0,
            Self::Hosts(HostCount(n)) => n,
        }
    }

    /// Back from [`Layout::n_hosts`].
    pub fn from_n_hosts(n_hosts: u32) -> Result<Self, Problem> {
        if n_hosts == 0 { Ok(Self::Solo) } else { Self::hosts(n_hosts) }
    }

    /// The slot with this index; refuses an index outside the layout.
    pub fn slot(self, host_idx: u32) -> Result<Slot, Problem> {
        match self {
            Self::Solo if host_idx == 0 => Ok(Slot::Solo),
            Self::Solo => Err(Problem::new(
                Reason::HostInfoInvalid,
                format!("host_idx {host_idx} in a solo layout: solo has only index 0"),
            )
            .with("host_idx", host_idx)
            .with("n_hosts", 0)),
            Self::Hosts(HostCount(n)) => HostInfo::new(host_idx, n).map(Slot::Host),
        }
    }

    /// All slots, by index.
    pub fn slots(self) -> impl Iterator<Item = Slot> {
        (0..self.len()).map(move |host_idx| match self {
            Self::Solo => Slot::Solo,
            Self::Hosts(HostCount(n_hosts)) => Slot::Host(HostInfo { host_idx, n_hosts }),
        })
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Solo => f.write_str("solo"),
            Self::Hosts(HostCount(1)) => f.write_str("1 host"),
            Self::Hosts(HostCount(n)) => write!(f, "{n} hosts"),
        }
    }
}

/// A stable place in a layout; the pod is only its current body.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Slot {
    /// The one host of a solo layout.
    Solo,
    /// A host of a multi-host layout.
    Host(HostInfo),
}

impl Slot {
    /// Index in the layout: 0 for solo.
    pub const fn idx(self) -> u32 {
        match self {
            Self::Solo => 0,
            Self::Host(info) => info.host_idx(),
        }
    }

    /// The `HostInfo`, absent for solo.
    pub const fn host_info(self) -> Option<HostInfo> {
        match self {
            Self::Solo => None,
            Self::Host(info) => Some(info),
        }
    }

    /// The layout it is part of.
    pub const fn layout(self) -> Layout {
        match self {
            Self::Solo => Layout::Solo,
            Self::Host(info) => Layout::Hosts(HostCount(info.n_hosts())),
        }
    }

    /// First component of this host's keys, the slash included: `host1/` is no prefix of `host10/`.
    pub fn prefix(self) -> String {
        match self {
            Self::Solo => "solo/".to_owned(),
            Self::Host(info) => format!("host{}/", info.host_idx()),
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Solo => f.write_str("the solo host"),
            Self::Host(info) => info.fmt(f),
        }
    }
}
