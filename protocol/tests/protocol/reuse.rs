//! Garbage stays bounded, whatever the pushes are.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_protocol::reuse::{Decision, KEPT_SMALL, MOST_SMALL, Reuse, SMALL, Why};
use proptest::prelude::*;

#[test]
fn an_object_is_reused_until_more_than_half_of_it_is_dead() {
    let decide = |live: u64| {
        let mut reuse = Reuse::default();
        let object = reuse.object("a", 2001);
        reuse.wants(object, 0, live);
        let decision = reuse.decide();
        (decision.reuses(object), decision.sent_again())
    };
    assert_eq!(decide(2001), (true, 0));
    assert_eq!(decide(1001), (true, 0));
    assert_eq!(decide(1000), (false, 1000), "2001 > 2 x 1000");
    assert_eq!(decide(0), (false, 0), "nothing wanted, nothing sent");
}

#[test]
fn files_of_equal_content_count_once_and_other_hosts_keep_an_object_alive() {
    let mut reuse = Reuse::default();
    let object = reuse.object("a", 1000);
    for _ in 0..3 {
        reuse.wants(object, 100, 200);
    }
    reuse.wants(object, 200, 150);
    let decision = reuse.decide();
    assert!(!decision.reuses(object), "250 of 1000");
    assert_eq!(decision.given_up()[0].why, Why::MostlyDead);
    assert_eq!(decision.sent_again(), 250);
    assert_eq!(reuse.object("a", 1000), object);
    reuse.others_use(object, 300, 300);
    assert!(reuse.decide().reuses(object), "500 of 1000");
}

#[test]
fn too_many_small_objects_are_merged_smallest_first() {
    let decide = |count: usize| {
        let mut reuse = Reuse::default();
        let ids: Vec<_> = (0..count).map(|n| reuse.object(&format!("o{n}"), 10 + n as u64)).collect();
        let large = reuse.object("large", SMALL);
        reuse.wants(large, 0, SMALL);
        for (n, id) in ids.iter().enumerate() {
            reuse.wants(*id, 0, 10 + n as u64);
        }
        let decision = reuse.decide();
        assert!(decision.reuses(large), "{SMALL} live bytes are not small");
        ids.into_iter().map(|id| decision.reuses(id)).collect::<Vec<_>>()
    };
    assert_eq!(decide(MOST_SMALL), vec![true; MOST_SMALL]);
    let merged = [vec![false; MOST_SMALL + 1 - KEPT_SMALL], vec![true; KEPT_SMALL]].concat();
    assert_eq!(decide(MOST_SMALL + 1), merged);
}

#[test]
fn hostile_numbers_are_cut_to_the_object() {
    let mut reuse = Reuse::default();
    let object = reuse.object("a", u64::MAX);
    reuse.wants(object, u64::MAX, u64::MAX);
    reuse.wants(object, u64::MAX - 1, u64::MAX);
    reuse.wants(object, 0, 0);
    assert_eq!(reuse.decide().sent_again(), 1);
    let stranger = {
        let mut other = Reuse::default();
        other.object("x", 1);
        other.object("y", 1)
    };
    reuse.wants(stranger, 0, 1);
    assert!(!reuse.decide().reuses(stranger));
}

/// Where a file lies: object, offset, size.
type Placed = (u64, u64, u64);

const PACK: u64 = 16 << 20;

/// Pushes of one host, in sizes only.
#[derive(Default)]
struct Host {
    files: BTreeMap<u32, Placed>,
    objects: BTreeMap<u64, u64>,
    next_object: u64,
    /// Bytes of files changed or removed.
    died: u64,
    sent_again: u64,
    /// Packs written that are shorter than 2 x SMALL.
    short: u64,
}

impl Host {
    fn push(&mut self, wanted: &BTreeMap<u32, Option<u64>>, builders: usize) -> Decision {
        let mut reuse = Reuse::default();
        let known: BTreeMap<u32, Placed> = wanted
            .iter()
            .filter(|(_, size)| size.is_none())
            .filter_map(|(f, _)| Some((*f, *self.files.get(f)?)))
            .collect();
        self.died += self.files.iter().filter(|(f, _)| !known.contains_key(f)).map(|(_, placed)| placed.2).sum::<u64>();
        let mut name = |object: u64, size| reuse.object(&object.to_string(), size);
        let ids: BTreeMap<u64, _> = known.values().map(|p| (p.0, name(p.0, self.objects[&p.0]))).collect();
        for (object, offset, size) in known.values() {
            reuse.wants(ids[object], *offset, *size);
        }
        let decision = reuse.decide();
        self.sent_again += decision.sent_again();
        let mut files = BTreeMap::new();
        let mut packs: Vec<Option<(u64, u64)>> = vec![None; builders];
        for (turn, (file, size)) in wanted.iter().enumerate() {
            let size = match (size, known.get(file)) {
                (None, Some(placed)) if decision.reuses(ids[&placed.0]) => {
                    files.insert(*file, *placed);
                    continue;
                }
                (None, Some(placed)) => placed.2,
                (None, None) => continue,
                (Some(size), _) => *size,
            };
            let (object, offset) = if size >= SMALL {
                (self.object(size), 0)
            } else {
                let pack = &mut packs[turn % builders];
                let (object, filled) = match *pack {
                    Some((object, filled)) if filled + size <= PACK => (object, filled),
                    _ => (self.object(0), 0),
                };
                *pack = Some((object, filled + size));
                *self.objects.get_mut(&object).unwrap() += size;
                (object, filled)
            };
            files.insert(*file, (object, offset, size));
        }
        self.short += packs.iter().flatten().filter(|(_, filled)| *filled < 2 * SMALL).count() as u64;
        self.files = files;
        let used: BTreeSet<u64> = self.files.values().map(|placed| placed.0).collect();
        self.objects.retain(|object, _| used.contains(object));
        decision
    }

    fn object(&mut self, size: u64) -> u64 {
        self.next_object += 1;
        self.objects.insert(self.next_object, size);
        self.next_object
    }

    fn check(&self, builders: usize) -> Result<(), TestCaseError> {
        let live: u64 = self.files.values().map(|placed| placed.2).sum();
        let reachable: u64 = self.objects.values().sum();
        prop_assert!(reachable <= 2 * live, "{reachable} bytes reached for {live} alive");
        let objects = self.objects.len() as u64;
        prop_assert!(objects <= live / SMALL + (MOST_SMALL + builders) as u64, "{objects} objects for {live} bytes");
        let allowed = self.died + SMALL * self.short;
        prop_assert!(self.sent_again <= allowed, "{} bytes sent again, {allowed} allowed", self.sent_again);
        Ok(())
    }
}

#[test]
fn one_changed_file_a_push_leaves_few_packs_and_sends_little_again() {
    let mut host = Host::default();
    host.push(&(0..500).map(|file| (file, Some(1000))).collect(), 1);
    for push in 0..1000_u32 {
        let wanted = (0..500).map(|file| (file, (file == push * 7 % 500).then_some(1000))).collect();
        host.push(&wanted, 1);
        host.check(1).unwrap();
    }
    assert!(host.sent_again < 10 * 1000 * 1000, "{} bytes sent again for 1,000,000 changed", host.sent_again);
}

fn any_size() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 1_u64..5_000, 4 => 1_u64..200_000, 2 => 1_u64..SMALL, 1 => SMALL..3 * SMALL]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn after_every_push_garbage_packs_and_bytes_sent_again_are_bounded(
        count in 1_u32..400,
        builders in 1_usize..3,
        sizes in prop::collection::vec(any_size(), 64),
        pushes in prop::collection::vec((prop_oneof![3 => 0_u32..3, 1 => 1_u32..=100], any::<u32>(), 0_u32..3), 1..120),
    ) {
        let mut host = Host::default();
        let size = |n: u32| sizes[n as usize % sizes.len()];
        let first: BTreeMap<u32, Option<u64>> = (0..count).map(|file| (file, Some(size(file)))).collect();
        host.push(&first, builders);
        host.check(builders)?;
        for (churn, seed, kind) in pushes {
            // A file is touched if a number drawn from it and the seed is below the churn.
            let draw = |file: u32| file.wrapping_mul(2_654_435_761).wrapping_add(seed).rotate_left(13).wrapping_mul(40_503) >> 8;
            let mut wanted: BTreeMap<u32, Option<u64>> = host.files.keys().map(|file| (*file, None)).collect();
            for file in 0..count {
                let touched = draw(file) % 100 < churn;
                match (touched, kind) {
                    (false, _) => {}
                    (true, 0) => drop(wanted.remove(&file)),
                    (true, _) => drop(wanted.insert(file, Some(size(draw(file) / 100)))),
                }
            }
            host.push(&wanted, builders);
            host.check(builders)?;
        }
    }

    #[test]
    fn a_decision_does_not_depend_on_the_order_of_files(
        uses in prop::collection::vec((0_u8..60, 0_u64..3000, 0_u64..3000, any::<bool>()), 0..200),
        turn in any::<prop::sample::Index>(),
    ) {
        let decide = |uses: &[(u8, u64, u64, bool)]| {
            let mut reuse = Reuse::default();
            for (object, offset, length, wanted) in uses {
                let id = reuse.object(&object.to_string(), 3000);
                if *wanted { reuse.wants(id, *offset, *length) } else { reuse.others_use(id, *offset, *length) }
            }
            let decision = reuse.decide();
            (0_u8..60).map(|object| decision.reuses(reuse.object(&object.to_string(), 3000))).collect::<Vec<_>>()
        };
        let mut turned = uses.clone();
        if !turned.is_empty() {
            let middle = turn.index(turned.len());
            turned.rotate_left(middle);
        }
        prop_assert_eq!(decide(&uses), decide(&turned));
    }
}
