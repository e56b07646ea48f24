//! The life of three pipelines and a standby in a few minutes: pushes, restores, retention, faults; in the end the primary is lost for good and its standby goes
//! on. Then nothing that was promised is broken, and once the grace period of what was retired last is over, nothing is left that nobody reaches.

use std::{sync::Arc, time::Duration};

use lockstep_client::v1;
use lockstep_integration_tests::{
    auditor::{self, Evidence, Written, database::RoundRow},
    wait,
};
use tokio::time::timeout;

use crate::{
    crew::{self, Crew},
    run::{SETTLED, all_ended, kept_on_failure},
    schedule::{Strike, schedule},
    strike,
    world::{ORDERS, SOLO, STANDBY, STOCK, World},
};

const FAULTS: usize = 8;

/// Short, as everything here.
const GRACE: Duration = Duration::from_secs(2);

fn kept_for_a_moment() -> Option<v1::Retention> {
    let min_age = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    Some(v1::Retention { min_count: 3, min_age })
}

#[tokio::test(flavor = "multi_thread")]
async fn three_pipelines_and_a_standby_live_through_faults_and_a_lost_primary_and_leave_no_orphan_byte() {
    let seed = crate::from_env("LOCKSTEP_SEED").unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let schedule = schedule(seed, crate::from_env("LOCKSTEP_FAULTS").unwrap_or(FAULTS));
    let args = format!("--gc-interval 3s --gc-grace {}s", GRACE.as_secs());
    let world = Arc::new(World::start(seed, &[ORDERS, SOLO, STOCK, STANDBY], &args).await);
    kept_on_failure(&world, seed, &schedule, Box::pin(live(&world, seed, &schedule))).await;
}

async fn live(world: &Arc<World>, seed: u64, schedule: &[Strike]) {
    let (mut managers, mut readers) = (Vec::new(), Vec::new());
    for member in [ORDERS, SOLO, STOCK] {
        let spec = v1::PipelineSpec { retention: kept_for_a_moment(), ..world.spec(&member) };
        let crew = Crew::start(world, member, spec, seed).await;
        readers.push(tokio::spawn(crew::read(Arc::clone(world), member.name, crew.rounds(), seed)));
        managers.push(tokio::spawn(crew.live()));
    }
    let mut standby = Crew::of(world, STANDBY, seed);
    standby
        .create(v1::PipelineSpec {
            initial: v1::Initial::Standby as i32,
            pull_interval: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
            retention: kept_for_a_moment(),
            ..world.spec(&STANDBY)
        })
        .await;

    strike::all(world, schedule).await;
    world.clear();
    world.stop();
    let mut crews = Vec::new();
    for manager in managers {
        let crew = timeout(SETTLED, manager).await.expect("L1: a client still waits for its round");
        crews.push(crew.expect("a manager does not fail"));
    }
    for reader in readers {
        reader.await.expect("a reader does not fail");
    }

    // The primary's machines are gone, in whatever state it was.
    let primary = crews.remove(0);
    for agent in ORDERS.agents() {
        world.agents[agent].kill();
    }
    standby.activate().await;
    standby.goes_on_from(&primary);
    all_ended(world).await;
    crews.push(standby);
    for crew in &mut crews {
        crew.works_again().await;
    }

    // What was retired by the last push waits for the grace period.
    wait::until("nothing is left to collect", || async {
        for crew in &crews {
            crew.collect().await?;
        }
        let audit = auditor::audit(&world.collect().await);
        match (audit.orphan_bytes, audit.open_uploads) {
            (0, 0) => Ok(()),
            (bytes, uploads) => Err(format!("{bytes} orphan bytes, {uploads} open uploads")),
        }
    })
    .await;
    let evidence = world.collect().await;
    let audit = auditor::audit(&evidence);
    assert!(audit.findings.is_empty(), "{}", audit.listed());
    let told = Told::of(&evidence);
    println!("seed {seed}: {told:?}, {} checkpoints stand", audit.commits);
    assert!(told.retired > 0 && told.swept_objects > 0, "retention had nothing to do: {told:?}");
    assert!(told.followed > 0, "the standby never followed: {told:?}");
}

/// What happened beside the faults.
#[derive(Debug)]
#[expect(dead_code, reason = "printed")]
struct Told {
    committed: usize,
    installed: usize,
    /// Pulls of the standby.
    followed: usize,
    retired: usize,
    swept_objects: usize,
}

impl Told {
    fn of(evidence: &Evidence) -> Self {
        let rounds = |kind: &str| evidence.rows.rounds.values().filter(|round| round.phase == kind).count();
        let standby = evidence.rows.pipelines.values().find(|pipeline| pipeline.name == STANDBY.name);
        let of_standby = |round: &&RoundRow| standby.is_some_and(|standby| standby.id == round.pipeline);
        let followed = evidence.rows.rounds.values().filter(of_standby).filter(|round| round.phase == "installed");
        let swept = |written: &&Written| matches!(written, Written::Deleted { .. });
        Self {
            committed: rounds("committed"),
            installed: rounds("installed"),
            followed: followed.count(),
            retired: evidence.objects.keys().filter(|key| key.contains("/retired/")).count(),
            swept_objects: evidence.journal.iter().filter(swept).count(),
        }
    }
}
