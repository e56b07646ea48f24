//! Whether a store can hold checkpoints: tested, not believed (quality.md, "S3 servers differ"). Stores that overwrite on a create-only PUT
//! exist, and so do those where a race of creates has several winners; a commit on them would be no commit.

use bytes::Bytes;
use futures::future::join_all;
use lockstep_protocol::{key::Key, problem::Problem};
use uuid::Uuid;

use crate::{
    error::StoreError,
    store::{CreateOutcome, Lookup, ObjectStore, WriteOutcome, unsuitable},
};

/// Creates that race for one key.
const RACERS: u32 = 8;

/// Longest body that a probe reads back.
const SMALL: usize = 1 << 10;

/// One thing that was tested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeCheck {
    /// What a store must do.
    pub name: &'static str,
    /// What this one did.
    pub did: String,
}

/// Everything that was tested; all of it holds.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ProbeReport {
    /// In the order it was tested.
    pub checks: Vec<ProbeCheck>,
    /// Whether this process may delete. Agents need not; garbage collection must.
    pub may_delete: bool,
    /// Keys that the probe could not remove, relative to the location.
    pub left: Vec<String>,
}

/// Tests the store below a key prefix that nothing else uses. Unsuitable: `LOCATION_UNSUITABLE` saying what the store did. Not reachable,
/// denied, no such bucket: that problem.
pub async fn probe(store: &dyn ObjectStore) -> Result<ProbeReport, Problem> {
    probe_as(store, Uuid::new_v4()).await
}

/// The same under an id that nobody else has drawn: for callers whose every draw follows from a seed.
pub async fn probe_as(store: &dyn ObjectStore, id: Uuid) -> Result<ProbeReport, Problem> {
    let mut probe = Probe { store, id, written: Vec::new(), report: ProbeReport::default() };
    let result = probe.run().await;
    probe.clean_up().await;
    result.map(|()| probe.report)
}

struct Probe<'s> {
    store: &'s dyn ObjectStore,
    id: Uuid,
    written: Vec<String>,
    report: ProbeReport,
}

impl Probe<'_> {
    fn key(&mut self, number: u32) -> String {
        let key = Key::Probe(self.id, number).to_string();
        self.written.push(key.clone());
        key
    }

    fn holds(&mut self, name: &'static str, did: impl Into<String>) {
        self.report.checks.push(ProbeCheck { name, did: did.into() });
    }

    fn fails(&self, why: impl std::fmt::Display) -> Problem {
        unsuitable(self.store.location(), why)
    }

    async fn run(&mut self) -> Result<(), Problem> {
        self.missing_key().await?;
        self.create_once().await?;
        self.race().await?;
        self.listing().await
    }

    /// First, because it also finds out about a missing bucket, wrong credentials and no connection before anything is written.
    async fn missing_key(&mut self) -> Result<(), Problem> {
        const NAME: &str = "a missing key is 404, not 403";
        let key = Key::Probe(self.id, u32::MAX).to_string();
        // A listing shows which of the two a 403 is: no right at all, or no right to list.
        let listed = self.store.list(Key::PROBES, None, 1).await;
        match (self.store.get(&key, SMALL).await, listed) {
            (Lookup::Absent, Ok(_)) => {
                self.holds(NAME, "404 NoSuchKey");
                Ok(())
            }
            (_, Err(error)) | (Lookup::Unknown(error), _) => Err(error.problem()),
            (Lookup::Found(_), Ok(_)) => Err(self.fails(format!("it has an object at {key}, which was never written"))),
        }
    }

    async fn create_once(&mut self) -> Result<(), Problem> {
        let (first, second) = (Bytes::from_static(b"first"), Bytes::from_static(b"second"));
        let key = self.key(0);
        match self.store.create(&key, first.clone()).await {
            CreateOutcome::Done => {}
            // Our own earlier try can't be it: the SDK doesn't retry.
            CreateOutcome::Exists => return Err(self.fails("a create-only PUT of a new key is answered with 412")),
            CreateOutcome::Refused(error) | CreateOutcome::Unknown(error) => return Err(error.problem()),
        }
        self.must_read(&key, &first, "after a create").await?;
        self.holds("read after write", "a new object is read back at once");
        match self.store.create(&key, second.clone()).await {
            CreateOutcome::Exists => {}
            CreateOutcome::Done => {
                let now = match self.store.get(&key, SMALL).await {
                    Lookup::Found(found) if found == second => "and the object is overwritten",
                    _ => "though the object is unchanged",
                };
                return Err(self.fails(format!(
                    "a create-only PUT (If-None-Match: *) of an existing key is answered with success, {now}"
                )));
            }
            CreateOutcome::Refused(error) | CreateOutcome::Unknown(error) => return Err(error.problem()),
        }
        self.must_read(&key, &first, "after a refused create").await?;
        self.holds("create-only PUT of an existing key is refused", "412, the object is unchanged");
        Ok(())
    }

    async fn must_read(&self, key: &str, expected: &Bytes, when: &str) -> Result<(), Problem> {
        match self.store.get(key, SMALL).await {
            Lookup::Found(found) if found == *expected => Ok(()),
            Lookup::Found(_) => Err(self.fails(format!("a read {when} finds other bytes than were written"))),
            Lookup::Absent => Err(self.fails(format!("a read {when} finds nothing"))),
            Lookup::Unknown(error) => Err(error.problem()),
        }
    }

    async fn race(&mut self) -> Result<(), Problem> {
        let key = self.key(1);
        let bodies: Vec<Bytes> =
            (0..RACERS).map(|racer| Bytes::from(format!("racer {racer} of probe {}", self.id))).collect();
        let creates: Vec<_> = bodies.iter().map(|body| self.store.create(&key, body.clone())).collect();
        let outcomes = join_all(creates).await;
        let mut winners = Vec::new();
        let mut unclear: Option<StoreError> = None;
        for (body, outcome) in bodies.iter().zip(outcomes) {
            match outcome {
                CreateOutcome::Done => winners.push(body),
                CreateOutcome::Exists => {}
                // 409 is allowed to losers. Any other failure leaves it open who won.
                CreateOutcome::Unknown(error) if error.http_status == Some(409) => {}
                CreateOutcome::Refused(error) | CreateOutcome::Unknown(error) => unclear = Some(error),
            }
        }
        match (winners.as_slice(), unclear) {
            ([winner], _) => {
                let winner = (*winner).clone();
                self.must_read(&key, &winner, "after a race of creates, expecting the winner's bytes,").await?;
            }
            ([], Some(error)) => return Err(error.problem()),
            ([], None) => return Err(self.fails(format!("a race of {RACERS} create-only PUTs has no winner"))),
            (several, _) => {
                let count = several.len();
                return Err(
                    self.fails(format!("a race of {RACERS} create-only PUTs has {count} winners instead of one"))
                );
            }
        }
        self.holds("a race of 8 create-only PUTs has one winner", "one success, and its bytes stand");
        Ok(())
    }

    async fn listing(&mut self) -> Result<(), Problem> {
        let key = self.key(2);
        self.store.put(&key, Bytes::from_static(b"listed").into()).await.done()?;
        let prefix = format!("{}{}/", Key::PROBES, self.id);
        let keys = |page: Vec<crate::store::Listed>| page.into_iter().map(|listed| listed.key).collect::<Vec<_>>();
        let listed = keys(self.store.list_all(&prefix).await?);
        if listed != self.written {
            let expected = self.written.join(", ");
            return Err(self.fails(format!("a listing right after writing {expected} shows {}", listed.join(", "))));
        }
        let first = self.store.list(&prefix, None, 2).await?;
        let rest = self.store.list(&prefix, first.next.as_deref(), 2).await?;
        if keys(first.objects) != self.written[..2] || keys(rest.objects) != self.written[2..] || rest.next.is_some() {
            return Err(self.fails("a listing in pages leaves out or repeats keys"));
        }
        self.holds("listings show new keys at once, whole and in order", "3 keys, in one page and in two");
        match self.store.delete(&key).await {
            WriteOutcome::Done => {}
            WriteOutcome::Refused(error) => {
                self.holds("deletes (needed for garbage collection only)", format!("refused: {error}"));
                return Ok(());
            }
            WriteOutcome::Unknown(error) => return Err(error.problem()),
        }
        self.report.may_delete = true;
        self.written.pop();
        match self.store.get(&key, SMALL).await {
            Lookup::Absent => {}
            Lookup::Found(_) => return Err(self.fails("an object is still read after it was deleted")),
            Lookup::Unknown(error) => return Err(error.problem()),
        }
        if self.store.list_all(&prefix).await?.iter().any(|listed| listed.key == key) {
            return Err(self.fails("a listing still shows an object that was deleted"));
        }
        self.holds("a deleted object is gone at once", "404, and not listed");
        Ok(())
    }

    async fn clean_up(&mut self) {
        for key in std::mem::take(&mut self.written) {
            if self.store.delete(&key).await != WriteOutcome::Done {
                self.report.left.push(key);
            }
        }
    }
}
