//! Storage directories as an engine on the `dbsp` crate leaves them, without the engine: any number of checkpoints, any size, the same bytes for the same
//! seed. The content means nothing to a real engine; names, catalog, dependencies and the order in which files come and go are the real ones.

use std::{
    collections::BTreeSet,
    fs, io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use serde_json::json;
use uuid::Uuid;

/// What to generate.
#[derive(Clone, Debug)]
pub struct DbspOptions {
    /// The same seed and calls give the same files.
    pub seed: u64,
    /// Threads of the host; batches carry their number.
    pub workers: u32,
    /// Size of a batch; drawn evenly.
    pub batch_bytes: RangeInclusive<usize>,
    /// Operators with state of their own in each checkpoint's folder, every third of them empty.
    pub state_files: usize,
    /// Whether a Feldera controller writes `state.json`.
    pub controller: bool,
    /// Older engines write `dependencies.json` as a bare list of batches.
    pub bare_dependencies: bool,
    /// Of the program.
    pub fingerprint: u64,
}

impl Default for DbspOptions {
    fn default() -> Self {
        Self {
            seed: 0,
            workers: 2,
            batch_bytes: 512..=20_000,
            state_files: 9,
            controller: true,
            bare_dependencies: false,
            // Uses all 64 bits, as one that was seen.
            fingerprint: 11_057_525_854_332_059_820,
        }
    }
}

/// One host's directory and the pretended engine that writes it. All failures are those of the file system.
#[derive(Debug)]
pub struct DbspDirectory {
    root: PathBuf,
    options: DbspOptions,
    random: StdRng,
    /// Milliseconds in the next UUID's time.
    clock: u64,
    live: Vec<String>,
    checkpoints: Vec<Checkpoint>,
}

#[derive(Debug)]
struct Checkpoint {
    uuid: Uuid,
    entry: String,
    batches: Vec<String>,
}

impl DbspDirectory {
    /// Makes an empty directory with an empty catalog, as the engine does before its first checkpoint.
    pub fn create(root: impl Into<PathBuf>, options: DbspOptions) -> io::Result<Self> {
        let root = root.into();
        fs::create_dir_all(&root)?;
        fs::write(root.join("feldera.pidlock"), "")?;
        let random = StdRng::seed_from_u64(options.seed);
        let made = Self { root, options, random, clock: 1_760_000_000_000, live: Vec::new(), checkpoints: Vec::new() };
        made.publish()?;
        Ok(made)
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Forgets `merged` batches, writes `added` new ones, and makes a checkpoint that needs all that live. Files come first, then the catalog, then the root's
    /// `state.json`.
    pub fn checkpoint(&mut self, step: u64, added: usize, merged: usize) -> io::Result<Uuid> {
        self.live.drain(..merged.min(self.live.len()));
        for _ in 0..added {
            let worker = self.random.random_range(0..self.options.workers.max(1));
            let name = format!("w{worker}-{}.feldera", self.uuid());
            let size = self.random.random_range(self.options.batch_bytes.clone());
            let bytes = self.bytes(size);
            fs::write(self.root.join(&name), bytes)?;
            self.live.push(name);
        }
        let uuid = self.uuid();
        let folder = self.root.join(uuid.to_string());
        fs::create_dir(&folder)?;
        let mut names = vec!["CHECKPOINT".to_owned()];
        fs::write(folder.join("CHECKPOINT"), "")?;
        for number in 0..self.options.state_files {
            let name = format!("pspine-{number}.dat");
            let size = if number % 3 == 0 { 0 } else { self.random.random_range(1..2_000) };
            let bytes = self.bytes(size);
            fs::write(folder.join(&name), bytes)?;
            names.push(name);
        }
        let dependencies = if self.options.bare_dependencies {
            json!(self.live)
        } else {
            json!({ "batches": self.live, "state_files": names })
        };
        fs::write(folder.join("dependencies.json"), dependencies.to_string())?;
        let state = json!({ "step": step, "circuit": { "uuid": uuid.to_string() } }).to_string();
        if self.options.controller {
            fs::write(folder.join("state.json"), &state)?;
        }
        let entry = json!({
            "uuid": uuid.to_string(), "identifier": null, "fingerprint": self.options.fingerprint, "size": 1,
            "steps": step, "processed_records": step * 100,
        });
        let checkpoint = Checkpoint { uuid, entry: entry.to_string(), batches: self.live.clone() };
        self.checkpoints.push(checkpoint);
        self.publish()?;
        if self.options.controller {
            self.replace("state.json", state.as_bytes())?;
        }
        Ok(uuid)
    }

    /// The engine's clean-up: all but the newest `keep` checkpoints leave the catalog, and only then go their folders and the batches that nobody needs.
    pub fn collect(&mut self, keep: usize) -> io::Result<()> {
        let old: Vec<Checkpoint> = self.checkpoints.drain(..self.checkpoints.len().saturating_sub(keep)).collect();
        self.publish()?;
        let needed: BTreeSet<&String> =
            self.checkpoints.iter().flat_map(|checkpoint| &checkpoint.batches).chain(&self.live).collect();
        let unneeded: BTreeSet<&String> =
            old.iter().flat_map(|checkpoint| &checkpoint.batches).filter(|batch| !needed.contains(batch)).collect();
        for batch in unneeded {
            fs::remove_file(self.root.join(batch))?;
        }
        old.iter().try_for_each(|checkpoint| fs::remove_dir_all(self.root.join(checkpoint.uuid.to_string())))
    }

    fn publish(&self) -> io::Result<()> {
        let entries: Vec<&str> = self.checkpoints.iter().map(|checkpoint| checkpoint.entry.as_str()).collect();
        self.replace("checkpoints.feldera", format!("[{}]", entries.join(",")).as_bytes())
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let draft = self.root.join(format!("{name}.mut"));
        fs::write(&draft, bytes)?;
        fs::rename(draft, self.root.join(name))
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.random.fill_bytes(&mut bytes);
        bytes
    }

    /// A version 7 UUID whose time goes on by a millisecond each.
    fn uuid(&mut self) -> Uuid {
        self.clock += 1;
        uuid::Builder::from_unix_timestamp_millis(self.clock, &self.random.random()).into_uuid()
    }
}
