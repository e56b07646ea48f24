//! What a seed says: how many hosts, what they hold, and when who dies.

use std::{path::Path, time::Duration};

use lockstep_devkit::{FaultAction, FaultRule};
use lockstep_integration_tests::{
    cluster::agent_key,
    content::{link, noise, put},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

/// One run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// 0 is solo.
    pub(crate) hosts: u32,
    pub(crate) concurrency: u32,
    pub(crate) push: Kill,
    pub(crate) pull: Kill,
    /// Whether the first of the two checkpoints is pulled, not the newest.
    pub(crate) pull_first: bool,
}

/// Who dies, and when.
#[derive(Clone, Debug)]
pub(crate) struct Kill {
    pub(crate) agent: bool,
    pub(crate) coordinator: bool,
    /// Whose transfer says when.
    pub(crate) host: usize,
    pub(crate) moment: Moment,
}

/// When.
#[derive(Clone, Debug)]
pub(crate) enum Moment {
    /// At the host's n-th such request: it has arrived, and nothing of it is done.
    Before(Request),
    /// It was done, and the answer never comes.
    After(Request),
    /// When this share of the host's bytes has moved.
    Bytes(f64),
    /// So long after the round was asked for.
    Delay(Duration),
}

/// Requests that are counted.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    operation: Option<&'static str>,
    key: Option<&'static str>,
    nth: u64,
}

impl Request {
    fn any(nth: u64) -> Self {
        Self { operation: None, key: None, nth }
    }

    fn of(operation: &'static str, nth: u64) -> Self {
        Self { operation: Some(operation), ..Self::any(nth) }
    }

    fn manifest(operation: &'static str) -> Self {
        Self { key: Some("part.json"), ..Self::of(operation, 1) }
    }
}

impl Kill {
    /// The fault that holds the host at this moment, if a request is the moment.
    pub(crate) fn rule(&self) -> Option<FaultRule> {
        let (action, request) = match &self.moment {
            Moment::Before(request) => (FaultAction::Hang, request),
            Moment::After(request) => (FaultAction::HangAfterWrite, request),
            Moment::Bytes(_) | Moment::Delay(_) => return None,
        };
        let host = u32::try_from(self.host).expect("few hosts");
        let mut rule = FaultRule::new(action).access_key(agent_key(host)).nth(request.nth);
        if let Some(operation) = request.operation {
            rule = rule.operation(operation);
        }
        if let Some(key) = request.key {
            rule = rule.key_contains(key);
        }
        Some(rule)
    }

    fn draw(rng: &mut StdRng, hosts: u32, moment: Moment) -> Self {
        let (agent, coordinator) = match rng.random_range(0..10) {
            0 => (false, true),
            1 => (true, true),
            _ => (true, false),
        };
        Self { agent, coordinator, host: rng.random_range(0..hosts.max(1)) as usize, moment }
    }
}

/// Small numbers as often as great ones: 1 to 2^bits.
fn spread(rng: &mut StdRng, bits: f64) -> u64 {
    2f64.powf(rng.random_range(0.0..bits)).floor() as u64
}

fn push_moment(rng: &mut StdRng) -> Moment {
    match rng.random_range(0..100) {
        0..20 => Moment::Before(Request::any(spread(rng, 4.0))),
        20..50 => Moment::Bytes(rng.random_range(0.0..1.0)),
        50..60 => Moment::Before(Request::of("UploadPart", rng.random_range(1..=3))),
        60..65 => Moment::After(Request::of("UploadPart", rng.random_range(1..=3))),
        // Between the last piece and the object.
        65..72 => Moment::Before(Request::of("CompleteMultipartUpload", 1)),
        72..79 => Moment::After(Request::of("CompleteMultipartUpload", 1)),
        79..86 => Moment::Before(Request::manifest("PutObject")),
        86..92 => Moment::After(Request::manifest("PutObject")),
        _ => Moment::Delay(Duration::from_millis(rng.random_range(0..150))),
    }
}

fn pull_moment(rng: &mut StdRng) -> Moment {
    match rng.random_range(0..100) {
        0..25 => Moment::Before(Request::of("GetObject", spread(rng, 3.0))),
        25..80 => Moment::Bytes(rng.random_range(0.0..1.0)),
        80..88 => Moment::Before(Request::manifest("GetObject")),
        _ => Moment::Delay(Duration::from_millis(rng.random_range(0..150))),
    }
}

impl Plan {
    pub(crate) fn of(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let hosts = *[0, 1, 1, 2, 2, 3].choose(&mut rng).expect("not empty");
        let (push, pull) = (push_moment(&mut rng), pull_moment(&mut rng));
        Self {
            seed,
            hosts,
            concurrency: *[1, 2, 4, 16].choose(&mut rng).expect("not empty"),
            push: Kill::draw(&mut rng, hosts, push),
            pull: Kill::draw(&mut rng, hosts, pull),
            pull_first: rng.random_bool(0.25),
        }
    }

    fn rng(&self, host: usize) -> StdRng {
        StdRng::seed_from_u64(self.seed.wrapping_mul(31).wrapping_add(host as u64))
    }

    fn names(&self, host: usize) -> Vec<String> {
        let mut rng = self.rng(host);
        let mut names: Vec<String> =
            (0..rng.random_range(100..250)).map(|n| format!("{:02x}/{n}.bin", n % 7)).collect();
        for odd in
            ["with space/and more .bin", "größe-数据.bin", "..dots", "a..b/.hidden", "back\\slash", "plus+%2F&?#"]
        {
            names.push(odd.to_owned());
        }
        names.push("n".repeat(255));
        names
    }

    /// Writes a host's first checkpoint.
    pub(crate) fn first(&self, host: usize, folder: &Path) {
        let mut rng = self.rng(host);
        for name in self.names(host) {
            let length = if rng.random_bool(0.05) { 0 } else { rng.random_range(1..4000) };
            put(folder, &name, &noise(self.seed, &format!("{host} {name}"), length));
        }
        for (n, name) in self.large(host).iter().enumerate() {
            // The first is sent in at least two pieces.
            let length =
                if n == 0 { rng.random_range((5 << 20) + 1..11 << 20) } else { rng.random_range(1 << 20..5 << 20) };
            put(folder, name, &noise(self.seed, &format!("{host} {name}"), length));
        }
    }

    fn large(&self, host: usize) -> Vec<String> {
        let count = self.rng(host).random_range(1..=2);
        (0..count).map(|n| format!("large/{n}.dat")).collect()
    }

    /// Writes a host's second checkpoint: most of the first one's files linked, some changed, gone or new.
    pub(crate) fn second(&self, host: usize, first: &Path, folder: &Path) {
        let mut rng = self.rng(host + 1000);
        for name in self.names(host).iter().chain(&self.large(host)) {
            let from = first.join(name);
            match rng.random_range(0..20) {
                0 => {}
                1 => {
                    // As long as it was and begins as it did.
                    let mut bytes = std::fs::read(&from).expect("the first checkpoint has it");
                    if let Some(last) = bytes.last_mut() {
                        *last = !*last;
                    }
                    put(folder, name, &bytes);
                }
                2 => put(folder, name, &noise(self.seed, &format!("{host} {name} again"), rng.random_range(0..9000))),
                _ => link(&from, folder, name),
            }
        }
        put(folder, "new/file.bin", &noise(self.seed, &format!("{host} new"), rng.random_range(0..2 << 20)));
    }
}
