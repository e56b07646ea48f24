//! All that the coordinator leaves to chance: jitter of back-offs, and ids of what it makes. In one place, so that a simulation can replay a seed.
//!
//! A seed belongs to the thread that sets it and exists in builds with debug assertions only.

use std::ops::RangeInclusive;

use rand::{Rng, distr::uniform::SampleUniform};
use uuid::Uuid;

/// A number in the range.
pub(crate) fn between<T: SampleUniform + PartialOrd>(range: RangeInclusive<T>) -> T {
    #[cfg(debug_assertions)]
    let range = match seeded::draw(range, Rng::random_range) {
        Ok(number) => return number,
        Err(range) => range,
    };
    rand::rng().random_range(range)
}

/// An id that nobody else has drawn; later ones are greater, so that rows made together lie together.
pub(crate) fn id() -> Uuid {
    #[cfg(debug_assertions)]
    if let Ok(bytes) = seeded::draw((), |rng, ()| rng.random()) {
        return uuid::Builder::from_random_bytes(bytes).into_uuid();
    }
    Uuid::now_v7()
}

#[cfg(debug_assertions)]
mod seeded {
    use std::cell::RefCell;

    use rand::{SeedableRng, rngs::StdRng};

    thread_local! {
        static SEEDED: RefCell<Option<StdRng>> = const { RefCell::new(None) };
    }

    /// From now on this thread's draws follow from the seed; none: from the system again.
    pub fn seed(seed: Option<u64>) {
        SEEDED.set(seed.map(StdRng::seed_from_u64));
    }

    /// The arguments back where no seed is set.
    pub(super) fn draw<A, T>(arguments: A, draw: impl FnOnce(&mut StdRng, A) -> T) -> Result<T, A> {
        SEEDED.with_borrow_mut(|rng| match rng {
            Some(rng) => Ok(draw(rng, arguments)),
            None => Err(arguments),
        })
    }
}

#[cfg(debug_assertions)]
pub use seeded::seed;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_draws_and_without_one_nothing_does() {
        let draws = |seeded| {
            seed(seeded);
            (id(), between(0..=u64::MAX))
        };
        assert_eq!(draws(Some(7)), draws(Some(7)));
        assert_ne!(draws(Some(7)), draws(Some(8)));
        assert_ne!(draws(None), draws(None));
    }
}
