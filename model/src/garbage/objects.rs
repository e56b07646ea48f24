//! Sets, as bits.

use std::fmt;

/// Data objects and part manifests.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Objects(pub(super) u16);

const NAMES: [&str; 10] = ["d1", "pack", "d2", "d3", "d4", "dead", "m1", "m2", "m3", "m4"];

impl Objects {
    pub(super) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) const fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(super) const fn both(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub(super) const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    pub(super) const fn any(self) -> bool {
        self.0 != 0
    }

    /// Of the only one in it.
    pub(super) const fn number(self) -> usize {
        self.0.trailing_zeros() as usize
    }

    pub(super) fn bits(self) -> impl Iterator<Item = usize> {
        (0..NAMES.len()).filter(move |bit| self.0 & (1 << bit) != 0)
    }
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.bits().map(|bit| format_args_of(NAMES[bit]))).finish()
    }
}

/// Without quotes.
fn format_args_of(name: &'static str) -> impl fmt::Debug {
    struct Bare(&'static str);
    impl fmt::Debug for Bare {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }
    Bare(name)
}

/// Commit objects, by number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Commits(u8);

impl Commits {
    pub(super) const fn with(self, slot: u8) -> Self {
        Self(self.0 | 1 << slot)
    }

    pub(super) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) const fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(super) const fn both(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub(super) const fn has(self, slot: u8) -> bool {
        self.0 & (1 << slot) != 0
    }

    pub(super) const fn any(self) -> bool {
        self.0 != 0
    }

    pub(super) fn iter(self) -> impl DoubleEndedIterator<Item = u8> {
        (1..=4).filter(move |slot| self.has(*slot))
    }

    pub(super) fn of(slots: impl IntoIterator<Item = u8>) -> Self {
        slots.into_iter().fold(Self::default(), Self::with)
    }
}

impl fmt::Debug for Commits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}
