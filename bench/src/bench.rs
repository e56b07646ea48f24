//! The measurement: one data set after the other, one latency after the other, and within that each tool once, as often as there are runs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::args::Scope;
use crate::data::{self, Data, Tree};
use crate::ours::{self, Binaries, COORDINATOR, DOCUMENT, Rig};
use crate::peers::{Move, Peer};
use crate::plan::{Case, DataSet, Operation, Tool};
use crate::runner;
use crate::sample::{Cost, Results, Sample};
use crate::server::Store;

/// What came out, and what did not.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) results: Results,
    /// Tools that are not installed.
    pub(crate) missing: Vec<Tool>,
    /// Whatever failed or arrived different, in words.
    pub(crate) failures: Vec<String>,
    /// Share of the full data sets.
    pub(crate) scale: f64,
}

/// Everything that runs while tools are measured.
struct Bench<'a> {
    scope: &'a Scope,
    folder: &'a Path,
    store: Store,
    rig: Option<Rig>,
    peers: Vec<Peer>,
    /// Prefixes used so far.
    prefixes: u32,
    outcome: Outcome,
}

/// Measures all that is asked for, in a folder that nobody else uses.
pub(crate) async fn run(scope: &Scope, folder: &Path, bin_dir: &Path) -> Result<Outcome> {
    let (tools, missing) = choose(scope)?;
    let keys: Vec<&str> = tools.iter().map(|tool| tool.name()).chain([COORDINATOR]).collect();
    let store = Store::start(folder, &keys)?;
    let rig = if tools.contains(&Tool::Lockstep) {
        Some(Rig::start(folder, Binaries::take(bin_dir)?, store.endpoint()).await?)
    } else {
        None
    };
    let peers = tools.iter().filter_map(|tool| Peer::find(*tool)).collect();
    let outcome = Outcome { missing, scale: scope.scale, ..Outcome::default() };
    let mut bench = Bench { scope, folder, store, rig, peers, prefixes: 0, outcome };
    bench.warm_up().await?;
    for data_set in &scope.data_sets {
        bench.data_set(*data_set).await?;
    }
    if let Some(rig) = bench.rig {
        rig.stop().await?;
    }
    Ok(bench.outcome)
}

/// Tools to measure, and those that would be if they were there.
fn choose(scope: &Scope) -> Result<(Vec<Tool>, Vec<Tool>)> {
    let installed = |tool: &Tool| *tool == Tool::Lockstep || Peer::find(*tool).is_some();
    let wanted = scope.tools.clone().unwrap_or_else(|| Tool::ALL.to_vec());
    let (there, missing): (Vec<Tool>, Vec<Tool>) = wanted.into_iter().partition(installed);
    if scope.tools.is_some() && !missing.is_empty() {
        let names: Vec<&str> = missing.iter().map(|tool| tool.name()).collect();
        anyhow::bail!(
            "not installed: {}; run scripts/ensure-bench-peers.sh or leave them out of --tools",
            names.join(", ")
        );
    }
    Ok((there, missing))
}

fn say(text: &str) {
    eprintln!("{text}");
}

impl Bench<'_> {
    /// A coordinator that has done nothing yet is slower at the first round.
    async fn warm_up(&mut self) -> Result<()> {
        let Some(rig) = &self.rig else { return Ok(()) };
        let folder = self.folder.join("warm-up");
        let data = generate(DataSet::B, 0.0, &folder).await?;
        let mut solo = rig.pipeline("warm-up").await?;
        solo.checkpoint(&data.tree)?;
        solo.push().await.context("the first push of all")?;
        solo.end().await?;
        self.store.remove("warm-up/")?;
        Ok(fs::remove_dir_all(folder)?)
    }

    async fn data_set(&mut self, data_set: DataSet) -> Result<()> {
        let operations: Vec<Operation> =
            self.scope.operations.iter().copied().filter(|operation| data_set.takes(*operation)).collect();
        if operations.is_empty() {
            return Ok(());
        }
        let folder = self.folder.join("source");
        let data = generate(data_set, self.scope.scale, &folder).await?;
        let (files, mib) = (data.tree.files.len(), data.tree.bytes() >> 20);
        say(&format!("data set {}: {files} files, {mib} MiB", data_set.name()));
        for added_latency_ms in &self.scope.latencies {
            for run in 1..=self.scope.runs {
                if self.rig.is_some() {
                    self.turn(data_set, *added_latency_ms, run, &data, &operations, None).await?;
                }
                for peer in self.peers.clone() {
                    self.turn(data_set, *added_latency_ms, run, &data, &operations, Some(&peer)).await?;
                }
            }
        }
        Ok(fs::remove_dir_all(folder)?)
    }

    /// One tool's turn: all operations on a fresh prefix. What goes wrong ends the turn and is kept for the end.
    async fn turn(
        &mut self,
        data_set: DataSet,
        added_latency_ms: u64,
        run: u32,
        data: &Data,
        operations: &[Operation],
        peer: Option<&Peer>,
    ) -> Result<()> {
        self.prefixes += 1;
        let turn = Turn {
            data_set,
            added_latency_ms,
            run,
            data,
            operations,
            tool: peer.map_or(Tool::Lockstep, |peer| peer.tool),
            prefix: format!("p{}", self.prefixes),
            scratch: self.folder.join("scratch"),
            destination: self.folder.join("pulled"),
        };
        ours::empty(&turn.scratch)?;
        let ended = match (peer, &self.rig) {
            (Some(peer), _) => turn.peer(peer, &mut self.store, &mut self.outcome.results).await,
            (None, Some(rig)) => turn.ours(rig, &mut self.store, &mut self.outcome.results).await,
            (None, None) => Ok(()),
        };
        if let Err(error) = ended {
            let failure = format!("{} on {}, run {run}: {error:#}", turn.tool.name(), data_set.name());
            say(&format!("FAILED: {failure}"));
            self.outcome.failures.push(failure);
        }
        // Room for the next.
        self.store.delay(0)?;
        self.store.remove(&format!("{}/", turn.prefix))?;
        ours::empty(&turn.destination)
    }
}

async fn generate(data_set: DataSet, scale: f64, folder: &Path) -> Result<Data> {
    let folder = folder.to_owned();
    tokio::task::spawn_blocking(move || data::generate(data_set, scale, &folder)).await?
}

async fn check(tree: &Tree, folder: &Path, ignored: &'static [&'static str]) -> Result<()> {
    let (tree, folder) = (tree.clone(), folder.to_owned());
    tokio::task::spawn_blocking(move || tree.check(&folder, ignored)).await?
}

/// One tool, one prefix, all operations in order.
struct Turn<'a> {
    data_set: DataSet,
    added_latency_ms: u64,
    run: u32,
    data: &'a Data,
    operations: &'a [Operation],
    tool: Tool,
    prefix: String,
    scratch: PathBuf,
    destination: PathBuf,
}

/// What was counted before an operation began.
struct Before {
    server_cpu: std::time::Duration,
    coordinator_cpu: std::time::Duration,
}

impl Turn<'_> {
    fn wants(&self, operation: Operation) -> bool {
        self.operations.contains(&operation)
    }

    fn begin(&self, store: &mut Store, rig: Option<&Rig>) -> Result<Before> {
        store.delay(self.added_latency_ms)?;
        store.counts()?;
        let coordinator_cpu = rig.map_or(Ok(std::time::Duration::ZERO), |rig| rig.coordinator().cpu())?;
        Ok(Before { server_cpu: store.cpu()?, coordinator_cpu })
    }

    fn end(
        &self,
        (store, rig, results): (&mut Store, Option<&Rig>, &mut Results),
        (operation, before, cost, bytes_needed): (Operation, Before, Cost, u64),
    ) -> Result<()> {
        let server_cpu = store.cpu()?.saturating_sub(before.server_cpu);
        let coordinator_cpu = rig.map_or(Ok(std::time::Duration::ZERO), |rig| rig.coordinator().cpu())?;
        store.delay(0)?;
        let counts = store.counts()?;
        let own = counts.get(self.tool.name()).copied().unwrap_or_default();
        let coordinators = counts.get(COORDINATOR).copied().unwrap_or_default();
        let sample = Sample {
            cost,
            requests: own.requests,
            put_requests: own.puts,
            bytes_sent: own.sent,
            bytes_received: own.received,
            coordinator_requests: coordinators.requests,
            server_cpu_s: server_cpu.as_secs_f64(),
            coordinator_cpu_s: coordinator_cpu.saturating_sub(before.coordinator_cpu).as_secs_f64(),
            bytes_needed,
        };
        say(&format!(
            "{} {:7} +{} ms  {:13} run {}: {:6.2} s, CPU {:5.2} s, {:4} MiB, {} requests",
            self.data_set.name(),
            operation.name(),
            self.added_latency_ms,
            self.tool.name(),
            self.run,
            cost.wall_s,
            cost.cpu_s,
            cost.peak_rss >> 20,
            sample.requests,
        ));
        let case =
            Case { data_set: self.data_set, operation, added_latency_ms: self.added_latency_ms, tool: self.tool };
        results.add(case, sample);
        Ok(())
    }

    async fn ours(&self, rig: &Rig, store: &mut Store, results: &mut Results) -> Result<()> {
        let mut solo = rig.pipeline(&self.prefix).await?;
        if let Some(before) = &self.data.before {
            solo.checkpoint(before)?;
            solo.push().await.context("the push before")?;
        }
        let document = solo.checkpoint(&self.data.tree)?;
        let before = self.begin(store, Some(rig))?;
        let cost = solo.push().await.context("push")?;
        if self.wants(Operation::Push) {
            let needed = self.data.bytes_changed() + document;
            self.end((&mut *store, Some(rig), &mut *results), (Operation::Push, before, cost, needed))?;
        }
        if self.wants(Operation::Nothing) {
            let document = solo.checkpoint(&self.data.tree)?;
            let before = self.begin(store, Some(rig))?;
            let cost = solo.push().await.context("push of nothing new")?;
            self.end((&mut *store, Some(rig), &mut *results), (Operation::Nothing, before, cost, document))?;
        }
        store.delay(0)?;
        // Also where it is not timed: only that shows that the push was complete.
        solo.new_machine().await?;
        let before = self.begin(store, Some(rig))?;
        let cost = solo.pull(false).await.context("pull")?;
        if self.wants(Operation::Pull) {
            let needed = self.data.tree.bytes() + document;
            self.end((&mut *store, Some(rig), &mut *results), (Operation::Pull, before, cost, needed))?;
        }
        check(&self.data.tree, &solo.pulled()?, &[DOCUMENT]).await.context("pull")?;
        if self.wants(Operation::Repair) {
            let needed = self.lose(&solo.pulled()?)?;
            let before = self.begin(store, Some(rig))?;
            let cost = solo.pull(true).await.context("repair")?;
            self.end((&mut *store, Some(rig), &mut *results), (Operation::Repair, before, cost, needed))?;
            check(&self.data.tree, &solo.pulled()?, &[DOCUMENT]).await.context("repair")?;
        }
        solo.end().await
    }

    async fn peer(&self, peer: &Peer, store: &mut Store, results: &mut Results) -> Result<()> {
        ours::empty(&self.destination)?;
        let endpoint = store.endpoint().to_owned();
        let what = |tree, compare| Move {
            tree,
            endpoint: &endpoint,
            prefix: &self.prefix,
            destination: &self.destination,
            scratch: &self.scratch,
            compare,
        };
        let tree = &self.data.tree;
        if let Some(before) = &self.data.before {
            // Who can't compare has no second push.
            let Some(_) = peer.invocation(Operation::Push, &what(tree, true)).await? else { return Ok(()) };
            if let Some(first) = peer.invocation(Operation::Push, &what(before, false)).await? {
                runner::measure(&first, &self.scratch).await.context("the push before")?;
            }
            self.data.touch_changed()?;
        }
        for operation in Operation::ALL {
            let needed_later = operation == Operation::Pull && self.wants(Operation::Repair);
            if !(self.wants(operation) || operation == Operation::Push || needed_later) {
                continue;
            }
            let compare = matches!(operation, Operation::Nothing | Operation::Repair) || self.data.before.is_some();
            let Some(invocation) = peer.invocation(operation, &what(tree, compare)).await? else { continue };
            let needed = match operation {
                Operation::Push => self.data.bytes_changed(),
                Operation::Nothing => 0,
                Operation::Pull => tree.bytes(),
                Operation::Repair => self.lose(&self.destination)?,
            };
            let before = self.begin(store, None)?;
            let usage = runner::measure(&invocation, &self.scratch).await.context(operation.name())?;
            let cost = Cost { wall_s: usage.wall_s, cpu_s: usage.cpu_s, peak_rss: usage.peak_rss };
            if self.wants(operation) {
                self.end((&mut *store, None, &mut *results), (operation, before, cost, needed))?;
            }
            match operation {
                Operation::Push | Operation::Nothing => self.check_sizes(store).context(operation.name())?,
                Operation::Pull | Operation::Repair => {
                    check(tree, &self.destination, &[]).await.context(operation.name())?;
                }
            }
        }
        Ok(())
    }

    /// Removes a tenth of the files; how many bytes that were.
    fn lose(&self, folder: &Path) -> Result<u64> {
        let mut bytes = 0;
        for (path, content) in self.data.tree.lost() {
            let place = folder.join(path);
            fs::remove_file(&place).with_context(|| place.display().to_string())?;
            bytes += content.size;
        }
        Ok(bytes)
    }

    /// Whether a peer's objects are all there, by their sizes.
    fn check_sizes(&self, store: &mut Store) -> Result<()> {
        let prefix = format!("{}/", self.prefix);
        let objects = store.objects(&prefix)?;
        for (path, content) in &self.data.tree.files {
            let size = objects.get(&format!("{prefix}{path}"));
            anyhow::ensure!(size == Some(&content.size), "{path} has {} bytes, its object {size:?}", content.size);
        }
        Ok(())
    }
}
