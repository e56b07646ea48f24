//! A coordinator dies at a failpoint of a pin, a deletion, a verification or a collection, a second replica goes on with it.
//!
//! The second replica is stopped (SIGSTOP) while the first one works, so that it is the first one that comes to the place.

use std::{
    collections::BTreeSet,
    fmt,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use lockstep_client::{ClientError, LockstepClient, v1};
use lockstep_failpoint::{Point, Point::*};
use lockstep_integration_tests::{
    cli::lockstep,
    cluster::{BUCKET, COORDINATOR_KEY, Cluster, Options, PIPELINE, client_of},
    wait,
};

use crate::lane::{Lane, Outcome, go_through};

/// What is under way when it happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum During {
    /// A checkpoint is retired and swept, an orphan is deleted.
    Collect,
    /// A checkpoint is pinned.
    Pin,
    /// Two pins of one name are taken away.
    Unpin,
    /// One checkpoint is deleted.
    Delete,
    /// A checkpoint is read, of which a byte has changed.
    Verify,
}

#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) point: Point,
    during: During,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} during {:?}", self.point, self.during)
    }
}

const TABLE: &[(During, &[Point])] = &[
    (
        During::Collect,
        &[
            UpkeepStored,
            UpkeepClaimed,
            RetireBeforeMark,
            RetireMarked,
            TombstoneAfterPut,
            TombstoneStored,
            SweepPlanned,
            OrphansPlanned,
            DeleteBefore,
            StageDeleted,
            UpkeepBeforeEnd,
            UpkeepEnded,
        ],
    ),
    (During::Pin, &[UpkeepStored, UpkeepClaimed, PinBeforePut, PinAfterPut, UpkeepBeforeEnd, UpkeepEnded]),
    (During::Unpin, &[UpkeepStored, UpkeepClaimed, UnpinDeleted, UpkeepBeforeEnd, UpkeepEnded]),
    (
        During::Delete,
        &[
            UpkeepStored,
            UpkeepClaimed,
            RetireBeforeMark,
            RetireMarked,
            TombstoneAfterPut,
            TombstoneStored,
            UpkeepBeforeEnd,
            UpkeepEnded,
        ],
    ),
    (During::Verify, &[VerifyRead, VerifyKept, DamageTaken, DamageAfterPut, DamageStored]),
];

pub(crate) fn cases() -> Vec<Case> {
    let of = |&(during, points): &(During, &'static [Point])| points.iter().map(move |&point| Case { point, during });
    TABLE.iter().flat_map(of).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn s36_a_coordinator_that_dies_in_a_collection_leaves_one_that_the_other_one_ends() {
    go_through::<Collectors>("s36 upkeep", cases()).await;
}

/// Two replicas over one database, two hosts, one pipeline of which one checkpoint is kept.
struct Collectors {
    cluster: Cluster,
    step: u64,
}

impl Lane for Collectors {
    type Case = Case;

    async fn open(_: &Case) -> Self {
        let options = Options {
            hosts: 2,
            in_memory: true,
            create: false,
            lease: "600ms",
            renew_every: "150ms",
            coordinator_flags: vec!["--gc-grace", "0s", "--gc-interval", "0s"],
            ..Options::default()
        };
        let cluster = Cluster::with(options).await;
        let retention =
            Some(v1::Retention { min_count: 1, min_age: Some(prost_types::Duration { seconds: 0, nanos: 0 }) });
        let spec = v1::PipelineSpec { retention, ..cluster.spec(PIPELINE) };
        cluster.client.create_pipeline(spec).await.unwrap();
        let mut lane = Self { cluster, step: 0 };
        lane.push().await;
        lane
    }

    fn fits(&self, case: &Case) -> bool {
        // What is damaged stays where it is.
        case.during != During::Verify
    }

    async fn run(&mut self, case: &Case) -> Outcome {
        let old = self.push().await;
        let outcome = match case.during {
            During::Collect => {
                let new = self.push().await;
                self.leave_an_orphan(&old);
                let outcome = self.strike(case, &Ask::Collect(new_id())).await;
                self.only_what_lives_is_left(&[new]).await;
                outcome
            }
            During::Pin => {
                let outcome = self.strike(case, &Ask::Pin(new_id(), old.clone())).await;
                let shown = self.cluster.client.get_checkpoint(PIPELINE, &old).await.unwrap();
                assert_eq!(shown.pins.len(), 1, "one pin, however often it was put: {:?}", shown.pins);
                let new = self.push().await;
                self.collected().await;
                self.only_what_lives_is_left(&[new, old]).await;
                let unpin = v1::UnpinCheckpointRequest {
                    pipeline: PIPELINE.to_owned(),
                    pin: "pin".to_owned(),
                    ..Default::default()
                };
                self.cluster.client.unpin_checkpoint(unpin).await.unwrap();
                outcome
            }
            During::Unpin => {
                for _ in 0..2 {
                    Ask::Pin(new_id(), old.clone()).at(&self.cluster.client).await.unwrap();
                }
                let outcome = self.strike(case, &Ask::Unpin(new_id())).await;
                assert_eq!(self.cluster.s3.admin().keys(BUCKET, &format!("{PIPELINE}/pins/")).unwrap(), [""; 0]);
                outcome
            }
            During::Delete => {
                let new = self.push().await;
                let outcome = self.strike(case, &Ask::Delete(new_id(), old.clone())).await;
                let listed = self.cluster.client.list_checkpoints(PIPELINE, 10).await.unwrap();
                assert!(listed.iter().all(|checkpoint| checkpoint.id != old), "{listed:?}");
                self.collected().await;
                self.only_what_lives_is_left(&[new]).await;
                outcome
            }
            During::Verify => return self.verify(case, &old).await,
        };
        self.collected().await;
        outcome
    }
}

fn new_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// What is asked of whichever replica is there; again with the same id.
enum Ask {
    Collect(String),
    Pin(String, String),
    /// Every pin that bears the name; an answer names both, whoever has taken them away.
    Unpin(String),
    Delete(String, String),
    /// It is to be found damaged.
    Verify(String),
}

impl Ask {
    /// An error also while it is not done.
    async fn at(&self, client: &LockstepClient) -> Result<(), String> {
        let said = |error: ClientError| error.to_string();
        match self {
            Self::Collect(id) => {
                let request = v1::CollectGarbageRequest {
                    pipeline: PIPELINE.to_owned(),
                    request_id: id.clone(),
                    validate_only: false,
                };
                let collection = client.collect_garbage(request).await.map_err(said)?.collection.unwrap();
                if collection.phase == "done" { Ok(()) } else { Err(format!("{collection:?}")) }
            }
            Self::Pin(id, checkpoint) => {
                let request = v1::PinCheckpointRequest {
                    pipeline: PIPELINE.to_owned(),
                    checkpoint: checkpoint.clone(),
                    request_id: id.clone(),
                    ..Default::default()
                };
                client.pin_checkpoint(request).await.map(drop).map_err(said)
            }
            Self::Unpin(id) => {
                let request = v1::UnpinCheckpointRequest {
                    pipeline: PIPELINE.to_owned(),
                    pin: "pin".to_owned(),
                    request_id: id.clone(),
                };
                let pins = client.unpin_checkpoint(request).await.map_err(said)?.pins;
                assert_eq!(pins.len(), 2, "{pins:?}");
                Ok(())
            }
            Self::Delete(id, checkpoint) => {
                let request = v1::DeleteCheckpointRequest {
                    pipeline: PIPELINE.to_owned(),
                    checkpoint: checkpoint.clone(),
                    request_id: id.clone(),
                    validate_only: false,
                };
                let deleted = client.delete_checkpoint(request).await.map_err(said)?.checkpoint;
                assert_eq!(&deleted.unwrap().id, checkpoint);
                Ok(())
            }
            Self::Verify(checkpoint) => {
                let mut messages = client.verify_checkpoint(PIPELINE, checkpoint).await.map_err(said)?;
                while let Some(message) = messages.next().await {
                    let message = message.map_err(said)?;
                    if message.done {
                        assert!(!message.problems.is_empty(), "{message:?}");
                        let mark = message.checkpoint.and_then(|checkpoint| checkpoint.last_verification?.mark_time);
                        return mark.map(drop).ok_or_else(|| "the mark does not stand yet".to_owned());
                    }
                }
                Err("it ended early".to_owned())
            }
        }
    }
}

impl Collectors {
    /// The checkpoint's id.
    async fn push(&mut self) -> String {
        self.step += 1;
        for host in &self.cluster.hosts {
            let same = vec![u8::try_from(host.idx).unwrap(); 200_000];
            let own = vec![u8::try_from(self.step % 251).unwrap(); 200_000 + usize::try_from(self.step).unwrap()];
            host.checkpoint(self.step, &[("same", &same), ("own", &own)]);
        }
        self.cluster.pushed().await.id
    }

    /// The mark stands, everybody passes the checkpoint over, and the next push needs nothing of it.
    async fn verify(&mut self, case: &Case, damaged: &str) -> Outcome {
        let object = self.keys().into_iter().find(|key| key.contains(damaged) && key.ends_with("/data-0"));
        self.cluster.s3.admin().flip_byte(BUCKET, &object.expect("an object of it"), 7).unwrap();
        let outcome = self.strike(case, &Ask::Verify(damaged.to_owned())).await;
        let marks = self.cluster.s3.admin().keys(BUCKET, &format!("{PIPELINE}/damaged/")).unwrap();
        assert_eq!(marks.len(), 1, "{marks:?}");
        let latest = self.cluster.client.get_checkpoint(PIPELINE, "latest").await.unwrap();
        assert_ne!(latest.id, damaged);
        let healed = self.push().await;
        let verified = lockstep(&self.cluster, &["checkpoint", "verify", PIPELINE, &healed]);
        assert_eq!(verified.code, 0, "{verified:?}");
        outcome
    }

    fn keys(&self) -> BTreeSet<String> {
        self.cluster.s3.admin().keys(BUCKET, &format!("{PIPELINE}/host")).unwrap().into_iter().collect()
    }

    /// As a dead attempt of a round that was committed leaves it.
    fn leave_an_orphan(&self, round: &str) {
        let keys = self.keys();
        let key = keys.iter().find(|key| key.contains(round) && key.ends_with("-1/part.json")).expect("a manifest");
        let orphan = key.replace("-1/part.json", "-7/data-0");
        self.cluster.s3.admin().put_raw(BUCKET, &orphan, b"nobody's").unwrap();
    }

    /// Asks the one that is to die, waits for its death and for what the other one makes of it.
    async fn strike(&mut self, case: &Case, ask: &Ask) -> Outcome {
        self.cluster.arm(format!("{}=kill", case.point));
        let secret = format!("{COORDINATOR_KEY}-secret");
        let (mut victim, address) = self.cluster.another_coordinator("victim", "127.0.0.1:0", &secret).await;
        self.cluster.arm("");
        self.cluster.pause_coordinator(true);
        // It may die before it can answer; and it may be refused once, where the sleeping one holds a lock. The same request again is the same collection.
        let client = client_of(&format!("http://{address}"));
        let mut dead = false;
        for _ in 0..20 {
            let asked = async {
                let _ = ask.at(&client).await;
                victim.killed().await;
            };
            dead = tokio::time::timeout(Duration::from_secs(3), asked).await.is_ok();
            if dead {
                break;
            }
        }
        assert!(dead, "the victim never came to {}", case.point);
        let died = Instant::now();
        self.cluster.pause_coordinator(false);
        wait::until("the other one has ended it", || ask.at(&self.cluster.client)).await;
        Outcome { end: "done".to_owned(), recovery: died.elapsed() }
    }

    async fn collected(&self) {
        let ask = Ask::Collect(new_id());
        wait::until("it is collected", || ask.at(&self.cluster.client)).await;
    }

    /// The checkpoints, whole, and no byte beside what they need.
    async fn only_what_lives_is_left(&self, live: &[String]) {
        let listed = self.cluster.client.list_checkpoints(PIPELINE, 10).await.unwrap();
        assert_eq!(listed.iter().map(|checkpoint| checkpoint.id.clone()).collect::<Vec<_>>(), live);
        for id in live {
            let verified = lockstep(&self.cluster, &["checkpoint", "verify", PIPELINE, id]);
            assert_eq!(verified.code, 0, "{verified:?}");
        }
        let plan = lockstep(&self.cluster, &["gc", PIPELINE, "--dry-run"]);
        assert_eq!(plan.document["object_count"], 0, "{plan:?}");
        assert!(!self.keys().iter().any(|key| key.contains("-7/")), "the orphan is gone");
    }
}
