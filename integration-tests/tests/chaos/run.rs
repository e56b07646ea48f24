//! One run: good weather, faults, good weather again; then everything has to end (L1), to work (L2), and to be true (the audit).

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::FutureExt as _;
use lockstep_integration_tests::{auditor, wait};
use tokio::time::timeout;

use crate::{
    crew::{self, Crew},
    keeper::Keeper,
    report::Report,
    schedule::{Strike, schedule},
    strike,
    world::{PIPELINES, World},
};

/// L1: so long after the last fault every round is terminal.
const SETTLED: Duration = Duration::from_secs(60);

/// Panics where a promise was broken, with the seed and everything on the disk.
pub(crate) async fn run(seed: u64, faults: usize) -> Report {
    let schedule = schedule(seed, faults);
    let world = Arc::new(World::start(seed).await);
    let outcome = AssertUnwindSafe(live(&world, seed, &schedule)).catch_unwind().await;
    let broken = match outcome {
        Ok(report) if report.audit.findings.is_empty() => return report,
        Ok(report) => format!("{report}\n{}", report.audit.listed()),
        Err(_) => "it panicked, see above".to_owned(),
    };
    let left = world.keep().display();
    let strikes: String =
        schedule.iter().map(|Strike { after, fault }| format!("  {after:?} later: {fault:?}\n")).collect();
    panic!(
        "seed {seed} FAILED; replay it with LOCKSTEP_SEED={seed} LOCKSTEP_FAULTS={faults} cargo test --workspace --test chaos -- --nocapture\n\
         {broken}\nfaults:\n{strikes}left on the disk: {left}"
    );
}

async fn live(world: &Arc<World>, seed: u64, schedule: &[Strike]) -> Report {
    let began = Instant::now();
    let (mut managers, mut readers) = (Vec::new(), Vec::new());
    for pipeline in PIPELINES {
        let crew = Crew::start(world, pipeline, seed).await;
        readers.push(tokio::spawn(crew::read(Arc::clone(world), crew.pipeline, crew.rounds(), seed)));
        managers.push(tokio::spawn(crew.live()));
    }

    let struck = strike::all(world, schedule).await;
    world.clear();
    world.stop();
    let last = Instant::now();
    let mut crews = Vec::new();
    for manager in managers {
        let left = SETTLED.saturating_sub(last.elapsed());
        let crew = timeout(left, manager).await.expect("L1: a client still waits for its round");
        crews.push(crew.expect("a manager does not fail"));
    }
    all_ended(world).await;
    let settled = last.elapsed();
    assert!(settled <= SETTLED, "L1: rounds ended {settled:?} after the last fault");
    for reader in readers {
        reader.await.expect("a reader does not fail");
    }
    for crew in &mut crews {
        crew.works_again().await;
    }

    let evidence = world.collect().await;
    let mut report = Report::new(seed, &struck, &evidence.rows, auditor::audit(&evidence));
    (report.took, report.settled) = (began.elapsed(), settled);
    report.lost_answers = world.logged(&["looked after a lost answer"]).len();
    for crew in &crews {
        for (reason, count) in &crew.refused {
            *report.refused.entry(reason.clone()).or_default() += count;
        }
        report.without_space += crew.without_space;
    }
    let died: Vec<&str> =
        world.coordinators.iter().chain(&world.agents).filter(|keeper| keeper.died() > 0).map(Keeper::name).collect();
    assert!(died.is_empty(), "ended though nobody had asked them to: {died:?}");
    let panics = world.logged(&["panicked at"]);
    assert!(panics.is_empty(), "somebody panicked: {panics:#?}");
    report
}

/// L1, as the database sees it.
async fn all_ended(world: &World) {
    let postgres = world.postgres.lock().await;
    let mut connection = postgres.connect().await;
    let connection = tokio::sync::Mutex::new(&mut connection);
    wait::until("every round is terminal", || async {
        let statement = "SELECT count(*) FROM rounds WHERE ended_at IS NULL";
        let left: i64 = sqlx::query_scalar(statement)
            .fetch_one(&mut **connection.lock().await)
            .await
            .map_err(|error| error.to_string())?;
        if left == 0 { Ok(()) } else { Err(format!("{left} are not")) }
    })
    .await;
}
