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
    world::{ORDERS, SOLO, World},
};

/// L1: so long after the last fault every round is terminal.
pub(crate) const SETTLED: Duration = Duration::from_secs(60);

pub(crate) async fn run(seed: u64, faults: usize) -> Report {
    let schedule = schedule(seed, faults);
    let world = Arc::new(World::start(seed, &[ORDERS, SOLO], "").await);
    kept_on_failure(&world, seed, &schedule, Box::pin(live(&world, seed, &schedule))).await
}

/// Panics where a promise was broken, with the seed and everything on the disk.
pub(crate) async fn kept_on_failure<T>(
    world: &World,
    seed: u64,
    schedule: &[Strike],
    lived: impl Future<Output = T>,
) -> T {
    if let Ok(value) = AssertUnwindSafe(lived).catch_unwind().await {
        return value;
    }
    let (left, faults) = (world.keep().display(), schedule.len());
    let strikes: String =
        schedule.iter().map(|Strike { after, fault }| format!("  {after:?} later: {fault:?}\n")).collect();
    panic!(
        "seed {seed} FAILED, see above; replay it with LOCKSTEP_SEED={seed} LOCKSTEP_FAULTS={faults} cargo test --workspace --test chaos -- --nocapture\n\
         faults:\n{strikes}left on the disk: {left}"
    );
}

async fn live(world: &Arc<World>, seed: u64, schedule: &[Strike]) -> Report {
    let began = Instant::now();
    let (mut managers, mut readers) = (Vec::new(), Vec::new());
    for member in [ORDERS, SOLO] {
        let crew = Crew::start(world, member, world.spec(&member), seed).await;
        readers.push(tokio::spawn(crew::read(Arc::clone(world), member.name, crew.rounds(), seed)));
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
    assert!(report.audit.findings.is_empty(), "{report}\n{}", report.audit.listed());
    report
}

/// L1, as the database sees it.
pub(crate) async fn all_ended(world: &World) {
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
