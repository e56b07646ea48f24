//! Carrying a fault out, and ending it.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use lockstep_devkit::{FaultAction, FaultRule};
use lockstep_integration_tests::{
    cluster::{COORDINATOR_KEY, agent_key},
    own_postgres,
    proxy::{FaultProxy, Stall, Trap},
    small_disk,
};
use tokio::time::sleep;

use crate::{
    keeper::Keeper,
    schedule::{AGENTS, Fault, Route, S3Fault, Strike},
    world::{SMALL, World},
};

/// A fault that was carried out.
#[derive(Clone, Debug)]
pub(crate) struct Struck {
    pub(crate) fault: Fault,
    /// When whatever was to be taken away was.
    pub(crate) struck: DateTime<Utc>,
    /// False: it can't be done on this machine.
    pub(crate) done: bool,
}

/// Carries out one fault after the other, each in a task of its own, so that they overlap as their times say. Returns when the last one has ended.
pub(crate) async fn all(world: &Arc<World>, schedule: &[Strike]) -> Vec<Struck> {
    let mut tasks = Vec::new();
    for strike in schedule {
        sleep(strike.after).await;
        let (world, fault) = (Arc::clone(world), strike.fault);
        tasks.push(tokio::spawn(async move {
            aim(&world, fault).await;
            let struck = Utc::now();
            let done = carry_out(&world, fault).await;
            Struck { fault, struck, done }
        }));
    }
    let mut struck = Vec::new();
    for task in tasks {
        struck.push(task.await.expect("a fault can be carried out and ended"));
    }
    struck
}

/// Waits a while for a round in the phase that the fault is meant for. Rounds are short: without that, most of who dies has nothing to do.
async fn aim(world: &World, fault: Fault) {
    const PATIENCE: Duration = Duration::from_secs(3);
    let (during, driver) = match fault {
        Fault::KillCoordinator { which, during, .. } | Fault::StopCoordinator { which, during, .. } => {
            (during, Some(world.coordinators[which].name()))
        }
        Fault::KillBothCoordinators { during, .. }
        | Fault::KillAgent { during, .. }
        | Fault::StopAgent { during, .. } => (during, None),
        _ => return,
    };
    let postgres = world.postgres.lock().await;
    if postgres.direct_url().is_none() {
        return;
    }
    let mut connection = postgres.connect().await;
    drop(postgres);
    let seen = async {
        loop {
            let statement = "SELECT count(*) FROM rounds WHERE ended_at IS NULL AND phase = $1 AND ($2::text IS NULL OR lease_owner = $2)";
            let found = sqlx::query_scalar(statement).bind(during).bind(driver).fetch_one(&mut connection).await;
            // It may go away meanwhile.
            if found.map_or(true, |rounds: i64| rounds > 0) {
                return;
            }
            sleep(Duration::from_millis(3)).await;
        }
    };
    let _ = tokio::time::timeout(PATIENCE, seen).await;
}

async fn carry_out(world: &World, fault: Fault) -> bool {
    match fault {
        Fault::KillCoordinator { which, down, .. } => killed(&world.coordinators[which], down).await,
        Fault::KillAgent { which, down, .. } => killed(&world.agents[which], down).await,
        Fault::KillBothCoordinators { down, .. } => {
            tokio::join!(killed(&world.coordinators[0], down), killed(&world.coordinators[1], down));
        }
        Fault::StopCoordinator { which, lasts, .. } => stopped(&world.coordinators[which], lasts).await,
        Fault::StopAgent { which, lasts, .. } => stopped(&world.agents[which], lasts).await,
        Fault::Cut { route, share } => {
            with_proxy(world, route, |proxy| proxy.cut_some(share)).await;
        }
        Fault::Refuse { route, lasts } => {
            with_proxy(world, route, |proxy| proxy.change(|weather| weather.refuses = true)).await;
            with_proxy(world, route, FaultProxy::cut).await;
            sleep(lasts).await;
            with_proxy(world, route, |proxy| proxy.change(|weather| weather.refuses = false)).await;
        }
        Fault::Stall { route, stalls, lasts } => {
            with_proxy(world, route, |proxy| proxy.change(|weather| weather.stalls = stalls)).await;
            sleep(lasts).await;
            with_proxy(world, route, |proxy| proxy.change(|weather| weather.stalls = Stall::Nothing)).await;
        }
        Fault::Delay { route, delay, lasts } => {
            with_proxy(world, route, |proxy| proxy.change(|weather| weather.delay = delay)).await;
            sleep(lasts).await;
            with_proxy(world, route, |proxy| proxy.change(|weather| weather.delay = Duration::ZERO)).await;
        }
        Fault::StopPostgres { how, down } => {
            // Held all the while: nobody finds it half stopped.
            let mut postgres = world.postgres.lock().await;
            postgres.stop(how).await;
            sleep(down).await;
            postgres.restart().await;
        }
        Fault::TerminateBackends { times } => terminate(world, times).await,
        Fault::LoseCommit { carries, action, times } => {
            with_proxy(world, Route::Postgres, |proxy| proxy.set(Trap::new(carries, action).times(times))).await;
        }
        Fault::S3 { fault, times, coordinators } => s3(world, fault, times, coordinators).await,
        Fault::FillDisk { lasts } => {
            if world.small.is_none() {
                return false;
            }
            let filler = world.hosts[SMALL].dir.join("somebody-elses.bin");
            {
                let _held = world.agents[SMALL].hold().await;
                small_disk::fill(&filler);
            }
            sleep(lasts).await;
            let _held = world.agents[SMALL].hold().await;
            // The whole disk may have been lost meanwhile.
            let _ = std::fs::remove_file(&filler);
        }
    }
    true
}

async fn killed(keeper: &Keeper, down: Duration) {
    let _held = keeper.hold().await;
    keeper.kill();
    sleep(down).await;
    keeper.revive();
}

async fn stopped(keeper: &Keeper, lasts: Duration) {
    let _held = keeper.hold().await;
    keeper.pause(true);
    sleep(lasts).await;
    keeper.pause(false);
}

async fn with_proxy<T>(world: &World, route: Route, act: impl FnOnce(&FaultProxy) -> T) -> T {
    match route {
        Route::S3 => act(&world.s3_proxy),
        Route::Agent(which) => act(world.agents[which].proxy()),
        Route::Coordinator(which) => act(world.coordinators[which].proxy()),
        Route::Postgres => act(&world.postgres.lock().await.proxy),
    }
}

/// Whatever statement or COMMIT runs at that moment. There may be none: it looks again and again.
async fn terminate(world: &World, times: u32) {
    const LOOK: Duration = Duration::from_millis(5);
    const LOOKS: u32 = 300;
    let postgres = world.postgres.lock().await;
    let mut connection = postgres.connect().await;
    let mut left = u64::from(times);
    for _ in 0..LOOKS {
        left = left.saturating_sub(own_postgres::terminate_active(&mut connection, 1).await);
        if left == 0 {
            return;
        }
        sleep(LOOK).await;
    }
}

async fn s3(world: &World, fault: S3Fault, times: u64, coordinators: bool) {
    let late = Duration::from_millis(1500);
    let (action, lasts) = match fault {
        S3Fault::SlowDown => (FaultAction::SlowDown, 4000),
        S3Fault::ErrorAfterWrite => {
            (FaultAction::ErrorAfterWrite { status: 500, code: "InternalError".to_owned() }, 4000)
        }
        S3Fault::LostAnswer => (FaultAction::ResetAfterWrite, 4000),
        S3Fault::ResetDuringBody => (FaultAction::ResetDuringBody { after_bytes: 100 }, 4000),
        S3Fault::Truncated => (FaultAction::Truncate { after_bytes: 100 }, 4000),
        S3Fault::SlowBody => (FaultAction::Throttle { bytes_per_second: 50_000 }, 3000),
        S3Fault::LateWrite => (FaultAction::DelayWrite { ms: 1500 }, 3000),
    };
    let rule = FaultRule::new(action).times(times);
    let rules = if coordinators {
        vec![rule.access_key(COORDINATOR_KEY)]
    } else {
        (0..AGENTS as u32).map(|agent| rule.clone().access_key(agent_key(agent))).collect()
    };
    let ids: Vec<u64> = rules.into_iter().map(|rule| world.s3.faults().add(rule)).collect();
    sleep(Duration::from_millis(lasts)).await;
    for id in ids {
        world.s3.faults().remove(id);
    }
    if fault == S3Fault::LateWrite {
        // What was sent until now is still to be written.
        sleep(late).await;
    }
}
