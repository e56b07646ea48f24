//! `lockstep dev`: the demo's set up, kept running and kept between runs.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use lockstep_client::{LockstepClient, v1};
use tokio::signal::unix::{SignalKind, signal};

use crate::commands::parse_duration;
use crate::engine::Engine;
use crate::failure::Failure;
use crate::json;
use crate::output::{note, print};
use crate::rig::{Rig, RigOptions};

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Dev {
    /// Number of hosts, 1 to 64. A directory keeps the number it was made with.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    hosts: u32,
    /// Where everything is kept between runs.
    #[arg(long, default_value = ".lockstep/dev", value_name = "DIR")]
    dir: PathBuf,
    /// First of the ports: gRPC, then HTTP; agents from 10 above it, S3 at 90 above it. 0 takes free ones.
    #[arg(long, default_value_t = 7400, value_name = "PORT", value_parser = clap::value_parser!(u16).range(..=65_000))]
    port: u16,
    /// How often the engines write a checkpoint; 0s: never.
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = parse_duration)]
    engine_interval: Duration,
}

const AFTER_HELP: &str = "\
Postgres, S3, a coordinator and an agent for each host, all on loopback, and small engines that write a checkpoint now and then,
so that there is something to push. Runs until Ctrl-C; the next run goes on from there. To start over, remove the directory.

Examples:
  lockstep dev
  lockstep dev --hosts 5 --dir /tmp/five --port 7600
  lockstep push dev --wait                      in another terminal";

/// Seed of the engines' data.
const SEED: u64 = 1;

/// Average size of an engine's file.
const SEGMENT: u64 = 256 << 10;

/// More live segments than these are compacted away.
const LIVE: usize = 24;

const PIPELINE: &str = "dev";

/// How often the children are looked at.
const WATCH: Duration = Duration::from_millis(500);

pub(crate) async fn run(args: Dev) -> Result<(), Failure> {
    let no_signal = |error: std::io::Error| Failure::local("INTERNAL", format!("can't wait for signals: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signal)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signal)?;
    let mut stopped = Box::pin(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    });
    let options = RigOptions {
        dir: args.dir.clone(),
        hosts: args.hosts,
        first_port: (args.port > 0).then_some(args.port),
        durable: true,
        name: PIPELINE,
        lease: Duration::from_secs(10),
    };
    let mut rig = tokio::select! {
        rig = Box::pin(Rig::start(options)) => rig?,
        () = &mut stopped => return Ok(()),
    };
    let outcome = tokio::select! {
        outcome = Box::pin(stay_up(&mut rig, args.engine_interval)) => outcome,
        () = &mut stopped => Ok(()),
    };
    note("stopping");
    let ended = rig.stop().await;
    outcome.and(ended)
}

/// Returns only if something has failed.
async fn stay_up(rig: &mut Rig, interval: Duration) -> Result<(), Failure> {
    let client = rig.client()?;
    let pipeline = apply(&client, rig.spec()).await?;
    introduce(rig, &pipeline);
    let open = |agent: &crate::rig::Agent| Engine::open(&agent.disk, agent.host, SEED);
    let mut engines = rig.agents.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let mut watch = tokio::time::interval(WATCH);
    // The first checkpoint comes at once. Of an interval of zero none would end.
    let mut work = tokio::time::interval(if interval.is_zero() { Duration::from_secs(3600) } else { interval });
    loop {
        tokio::select! {
            _ = watch.tick() => rig.check()?,
            _ = work.tick() => {
                if !interval.is_zero() {
                    tokio::task::block_in_place(|| checkpoint_all(&mut engines))?;
                }
            }
        }
    }
}

/// All engines write a checkpoint of the same step, unless a pull is just putting another one in place: then they go on from
/// that, once every host has it.
fn checkpoint_all(engines: &mut [Engine]) -> Result<(), Failure> {
    let mut on_disk = Vec::new();
    for engine in engines.iter() {
        on_disk.push(engine.step_on_disk()?);
    }
    let in_step = engines.iter().zip(&on_disk).all(|(engine, step)| step.unwrap_or(0) == engine.step());
    if !in_step || engines.iter().any(Engine::was_replaced) {
        if on_disk.windows(2).all(|pair| pair[0] == pair[1]) {
            for engine in engines {
                engine.recover()?;
            }
        }
        return Ok(());
    }
    for engine in engines {
        engine.work(1, SEGMENT, LIVE)?;
        engine.checkpoint()?;
    }
    Ok(())
}

/// Creates the pipeline, or brings it up to this run's addresses.
async fn apply(client: &LockstepClient, spec: v1::PipelineSpec) -> Result<v1::Pipeline, Failure> {
    let existing = match client.get_pipeline(PIPELINE).await {
        Ok(existing) => existing,
        Err(error) if error.is_not_found() => return Ok(client.create_pipeline(spec).await?),
        Err(error) => return Err(error.into()),
    };
    if existing.spec.as_ref().is_some_and(|kept| json::spec(kept) == json::spec(&spec)) {
        return Ok(existing);
    }
    let request = v1::UpdatePipelineRequest {
        pipeline: existing.id,
        spec: Some(spec),
        etag: existing.etag,
        ..Default::default()
    };
    Ok(client.update_pipeline(request).await?)
}

fn introduce(rig: &Rig, pipeline: &v1::Pipeline) {
    let coordinator = &rig.coordinator;
    let option = match coordinator.grpc.port() {
        7400 => String::new(),
        _ => format!(" --coordinator {}", coordinator.address()),
    };
    let mut lines = vec![
        format!(
            "lockstep dev: pipeline {PIPELINE} with {} hosts is up; everything is kept in {}",
            rig.agents.len(),
            rig.dir().display()
        ),
        String::new(),
        format!(
            "coordinator  {}   (http://{}/metrics, pid {})",
            coordinator.address(),
            coordinator.http,
            coordinator.pid()
        ),
    ];
    for agent in &rig.agents {
        let (host, addr, disk, pid) = (agent.host, agent.addr, agent.disk.display(), agent.pid());
        lines.push(format!("host {host}       http://{addr}   (disk {disk}, pid {pid})"));
    }
    let keys = rig.credentials();
    lines.extend([
        format!("S3           {}   (bucket {PIPELINE})", rig.s3.endpoint()),
        format!("postgres     psql '{}'", rig.database_url()),
        format!("logs         {}/logs/", rig.dir().display()),
        String::new(),
        "Try, in another terminal:".to_owned(),
        format!("  lockstep{option} push {PIPELINE} --wait"),
        format!("  lockstep{option} checkpoint list {PIPELINE}"),
        format!("  lockstep{option} pull {PIPELINE} --standby=false --discard-local --wait"),
        format!("  lockstep{option} audit {PIPELINE}"),
        format!("  lockstep{option} status"),
        "and for the S3 server (its keys are drawn for this directory and open nothing else):".to_owned(),
        format!("  export AWS_ACCESS_KEY_ID={} AWS_SECRET_ACCESS_KEY={}", keys.access_key_id, keys.secret_access_key),
        format!("  export AWS_ENDPOINT_URL={} AWS_REGION={}", rig.s3.endpoint(), lockstep_devkit::s3::REGION),
        format!("  lockstep probe s3://{PIPELINE}/probe"),
    ]);
    for warning in &pipeline.warnings {
        lines.push(format!("warning: {warning}"));
    }
    lines.push("\nCtrl-C ends it.".to_owned());
    print(&lines.join("\n"));
}
