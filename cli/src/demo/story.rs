//! What happens in the demo, in order.

use futures::StreamExt as _;
use lockstep_client::{LockstepClient, succeeded, v1};
use lockstep_devkit::{FaultAction, FaultRule};

use super::narrator::Narrator;
use crate::engine::{Engine, Written};
use crate::failure::Failure;
use crate::rig::Rig;
use crate::text;

const PIPELINE: &str = "demo";

/// Average size of an engine's file.
const SEGMENT: u64 = 1 << 20;

/// More live segments than these are compacted away.
const LIVE: usize = 14;

/// What S3 takes in a second, for each request, in the first push.
const PACED: u64 = 1 << 20;

/// The same while the coordinator is killed.
const SLOW: u64 = 256 << 10;

pub(crate) struct Story {
    rig: Rig,
    client: LockstepClient,
    engines: Vec<Engine>,
    narrator: Narrator,
}

impl Story {
    pub(crate) fn new(rig: Rig, narrator: Narrator, seed: u64) -> Result<Self, Failure> {
        let client = rig.client()?;
        let open = |agent: &crate::rig::Agent| Engine::open(&agent.disk, agent.host, seed);
        let engines = rig.agents.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Self { rig, client, engines, narrator })
    }

    pub(crate) fn end(self) -> (Rig, Narrator) {
        (self.rig, self.narrator)
    }

    /// True if in the end every host's state is what it was.
    pub(crate) async fn tell(&mut self) -> Result<bool, Failure> {
        self.set_the_scene().await?;

        self.narrator.chapter("work, checkpoint, push");
        self.work(10)?;
        let paced = self.slow_down(PACED);
        self.narrator.say(&format!("push, at {}/s a request, so that there is something to see", text::size(PACED)));
        self.push().await?;
        self.rig.s3.faults().remove(paced);

        self.narrator.chapter("work on, push again: only what is new goes");
        self.work(2)?;
        self.push().await?;

        self.narrator.chapter("kill -9 the coordinator in the middle of a push");
        self.work(5)?;
        let survivor = Box::pin(self.push_through_a_crash()).await?;
        let before = self.digests()?;

        self.narrator.chapter("lose every machine");
        self.rig.lose_hosts()?;
        self.narrator.say("kill -9 all agents, rm -rf all disks: engines, checkpoints and agent state are gone");
        self.rig.restart_agents().await?;
        for engine in &mut self.engines {
            engine.recover()?;
        }
        self.narrator.say("new agents on empty disks; the engines would start at step 0");

        self.narrator.chapter("pull");
        self.pull().await?;

        self.narrator.chapter("compare");
        let agree = self.compare(&before)?;

        self.narrator.chapter("what the audit trail says of the push that was interrupted");
        self.audit(&survivor).await?;
        Ok(agree)
    }

    async fn set_the_scene(&mut self) -> Result<(), Failure> {
        let Rig { coordinator, agents, s3, postgres, .. } = &self.rig;
        self.narrator.say(&format!("postgres on port {}, S3 on {}", postgres.port(), s3.addr()));
        let pids: Vec<String> = agents.iter().map(|agent| agent.pid().to_string()).collect();
        self.narrator.say(&format!(
            "coordinator on {} (pid {}), agents of hosts 0 to {} (pids {})",
            coordinator.grpc,
            coordinator.pid(),
            agents.len() - 1,
            pids.join(", ")
        ));
        let pipeline = self.client.create_pipeline(self.rig.spec()).await?;
        let generation = pipeline.generation;
        self.narrator.say(&format!(
            "pipeline {PIPELINE}: {} hosts, owns s3://demo/demo (generation {generation})",
            agents.len()
        ));
        Ok(())
    }

    /// All engines work and write a checkpoint of the same step.
    fn work(&mut self, segments: u64) -> Result<(), Failure> {
        // The hosts work side by side; the runtime's other threads go on with S3.
        let written = tokio::task::block_in_place(|| {
            std::thread::scope(|scope| {
                let hosts: Vec<_> = self
                    .engines
                    .iter_mut()
                    .map(|engine| {
                        scope.spawn(move || {
                            engine.work(segments, SEGMENT, LIVE)?;
                            engine.checkpoint()
                        })
                    })
                    .collect();
                let crashed = |_| Failure::local("INTERNAL", "an engine of the demo crashed");
                hosts.into_iter().map(|host| host.join().map_err(crashed)?).collect::<Result<Vec<Written>, Failure>>()
            })
        })?;
        let files: u64 = written.iter().map(|written| written.files).sum();
        let bytes: u64 = written.iter().map(|written| written.bytes).sum();
        let records: u64 = self.engines.iter().map(Engine::records).sum();
        let step = self.engines.first().map_or(0, Engine::step);
        let new = segments * self.engines.len() as u64;
        self.narrator.say(&format!(
            "engines: {records} records so far, {new} new files; checkpoint of step {step} on every host: {files} files, {}",
            text::size(bytes)
        ));
        Ok(())
    }

    /// Lets every upload run at no more than this, and returns the rule's id.
    fn slow_down(&self, bytes_per_second: u64) -> u64 {
        let rule = FaultRule::new(FaultAction::Throttle { bytes_per_second }).method("PUT");
        self.rig.s3.faults().add(rule)
    }

    async fn start_push(&self) -> Result<v1::Round, Failure> {
        let request = v1::StartPushRequest { pipeline: PIPELINE.to_owned(), ..Default::default() };
        Ok(self.client.start_push(request).await?)
    }

    async fn push(&mut self) -> Result<(), Failure> {
        let round = self.start_push().await?;
        self.narrator.reset_progress();
        let mut watch = self.client.watch_round(&round.id);
        let mut last = round;
        while let Some(next) = watch.next().await {
            last = next?;
            self.narrator.progress(&last);
        }
        self.committed(&last).await
    }

    /// Tells what a push that has ended put where.
    async fn committed(&mut self, round: &v1::Round) -> Result<(), Failure> {
        must_have_succeeded(round)?;
        let checkpoint = self.client.get_checkpoint(PIPELINE, &round.id).await?;
        let share = (checkpoint.bytes_uploaded * 100).checked_div(checkpoint.bytes).unwrap_or_default();
        let took = text::took(round.create_time.as_ref(), round.end_time.as_ref()).unwrap_or_default();
        self.narrator.say(&format!(
            "push {} committed in {}: step {} of all hosts, {} uploaded for {} ({share}%)",
            round.round_no,
            text::duration(took),
            checkpoint.step,
            text::size(checkpoint.bytes_uploaded),
            text::size(checkpoint.bytes)
        ));
        Ok(())
    }

    /// The coordinator dies when some of the bytes are through, and is started again. Returns the round's id.
    async fn push_through_a_crash(&mut self) -> Result<String, Failure> {
        let slow = self.slow_down(SLOW);
        let round = self.start_push().await?;
        self.narrator.reset_progress();
        self.narrator.say(&format!("push {} begins; S3 is slow now, {}/s a request", round.round_no, text::size(SLOW)));
        let mut watch = self.client.watch_round(&round.id);
        let mut killed = false;
        let mut last = round;
        while let Some(next) = watch.next().await {
            last = next?;
            let sent = crate::progress::total_of(&last).bytes_transferred;
            if killed || last.phase() != v1::RoundPhase::Transferring || sent < SEGMENT {
                continue;
            }
            killed = true;
            let pid = self.rig.coordinator.pid();
            self.rig.kill_coordinator();
            self.narrator
                .say(&format!("kill -9 {pid}: the coordinator is gone, {} into the transfer", text::size(sent)));
            self.rig.restart_coordinator().await?;
            let pid = self.rig.coordinator.pid();
            self.narrator
                .say(&format!("a new one (pid {pid}) is up on the same database; the agents go on sending meanwhile"));
        }
        self.rig.s3.faults().remove(slow);
        if !killed {
            return Err(Failure::local("INTERNAL", "the push was over before the coordinator could be killed"));
        }
        self.narrator.say(&format!(
            "it took the round over: term {} now, phase {}, attempts of the hosts {}",
            last.term,
            crate::json::phase_name(last.phase()),
            last.participants.iter().map(|host| host.attempt.to_string()).collect::<Vec<_>>().join(", ")
        ));
        self.committed(&last).await?;
        Ok(last.id)
    }

    async fn pull(&mut self) -> Result<(), Failure> {
        let request = v1::StartPullRequest {
            pipeline: PIPELINE.to_owned(),
            standby: Some(false),
            fail_if_none: Some(true),
            ..Default::default()
        };
        let round = self.client.start_pull(request).await?;
        self.narrator.reset_progress();
        let mut watch = self.client.watch_round(&round.id);
        let mut last = round;
        while let Some(next) = watch.next().await {
            last = next?;
            self.narrator.progress(&last);
        }
        must_have_succeeded(&last)?;
        let progress = crate::progress::total_of(&last);
        let took = text::took(last.create_time.as_ref(), last.end_time.as_ref()).unwrap_or_default();
        self.narrator.say(&format!(
            "pull {} installed in {}: step {}, {} files, {} downloaded, every file verified",
            last.round_no,
            text::duration(took),
            last.step.unwrap_or_default(),
            progress.files_total,
            text::size(progress.bytes_transferred)
        ));
        for engine in &mut self.engines {
            engine.recover()?;
        }
        Ok(())
    }

    fn digests(&self) -> Result<Vec<blake3::Hash>, Failure> {
        tokio::task::block_in_place(|| self.engines.iter().map(Engine::digest).collect())
    }

    fn compare(&mut self, before: &[blake3::Hash]) -> Result<bool, Failure> {
        let after = self.digests()?;
        let mut agree = after.len() == before.len();
        for (engine, (before, after)) in self.engines.iter().zip(before.iter().zip(&after)) {
            let same = before == after;
            agree &= same;
            let short = |hash: &blake3::Hash| hash.to_hex()[..16].to_owned();
            self.narrator.say(&format!(
                "host {}: before {}  after {}  {} (step {})",
                engine.host(),
                short(before),
                short(after),
                if same { "equal" } else { "DIFFERENT" },
                engine.step()
            ));
        }
        Ok(agree)
    }

    async fn audit(&self, round: &str) -> Result<(), Failure> {
        let filter = v1::ListAuditEventsRequest { round: round.to_owned(), ..Default::default() };
        let events = self.client.list_audit_events(filter, 100).await?;
        let of_the_round: Vec<&v1::AuditEvent> = events.iter().filter(|event| event.host_idx.is_none()).collect();
        for event in of_the_round.iter().take(8) {
            let time = event.time.as_ref().and_then(text::moment);
            let time = time.map_or_else(String::new, |time| time.format("%H:%M:%S%.3f").to_string());
            let change = match (event.from_phase.as_str(), event.to_phase.as_str()) {
                ("", "") => String::new(),
                ("", to) => format!("  {to}"),
                (from, to) => format!("  {from} -> {to}"),
            };
            let cause = if event.cause.is_empty() { String::new() } else { format!("  ({})", event.cause) };
            self.narrator.more(&format!("{time}  {}  {}{change}{cause}", event.actor, event.action));
        }
        self.narrator.more(&format!(
            "{} events in all, {} of them of single hosts",
            events.len(),
            events.len() - of_the_round.len()
        ));
        Ok(())
    }
}

fn must_have_succeeded(round: &v1::Round) -> Result<(), Failure> {
    if succeeded(round) {
        return Ok(());
    }
    let what = crate::view::what(round);
    let phase = crate::json::phase_name(round.phase());
    Err(match &round.problem {
        Some(problem) => Failure { document_given: false, ..Failure::of_problem(problem) },
        None => Failure::local("INTERNAL", format!("{what} is {phase}")),
    }
    .with("round.id", &round.id))
}
