//! The S3 server, the same for all tools: in a process of its own, so that its CPU time is nobody else's, steered by lines of JSON over its stdin and stdout.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use lockstep_bench::access::secret;
use lockstep_devkit::{FaultAction, FaultRule, S3Options, S3Server};
use serde::{Deserialize, Serialize};

use crate::child::{Server, THIS};

/// Hidden subcommand.
pub(crate) const SERVE: &str = "__s3";

/// The one bucket.
pub(crate) const BUCKET: &str = "bench";

/// What the hidden subcommand is started with.
#[derive(Debug, Parser)]
#[command(name = SERVE)]
struct ServeArgs {
    #[arg(long)]
    root: PathBuf,
    #[arg(long = "key")]
    keys: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Order {
    /// What was asked since the last time, by access key.
    Counts,
    /// Key and size of all objects with this prefix.
    Objects(String),
    /// Removes them.
    Remove(String),
    /// Added to each request from now on.
    Delay(u64),
}

/// What one access key has asked for.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) requests: u64,
    /// PutObject and UploadPart.
    pub(crate) puts: u64,
    /// Bytes of bodies to the server.
    pub(crate) sent: u64,
    /// Bytes of bodies from the server.
    pub(crate) received: u64,
}

/// The server's side; runs until stdin ends.
pub(crate) fn serve(args: &[std::ffi::OsString]) -> ExitCode {
    let args = ServeArgs::parse_from(std::iter::once(SERVE.into()).chain(args.iter().cloned()));
    let served = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("can't start the runtime")
        .and_then(|runtime| runtime.block_on(run(args)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: ServeArgs) -> Result<()> {
    let server = S3Server::start(S3Options {
        root: Some(args.root),
        buckets: vec![BUCKET.to_owned()],
        credentials: args.keys.into_iter().map(|key| (key.clone(), secret(&key))).collect(),
        ..S3Options::default()
    })
    .await?;
    say(&server.endpoint())?;
    tokio::task::spawn_blocking(move || -> Result<()> {
        for line in std::io::stdin().lock().lines() {
            let order = serde_json::from_str(&line?)?;
            obey(&server, order)?;
        }
        Ok(())
    })
    .await?
}

fn obey(server: &S3Server, order: Order) -> Result<()> {
    let admin = server.admin();
    match order {
        Order::Counts => {
            let counts = count(&server.requests());
            server.clear_requests();
            say(&counts)
        }
        Order::Objects(prefix) => {
            let sizes =
                admin.keys(BUCKET, &prefix)?.into_iter().map(|key| admin.size(BUCKET, &key).map(|size| (key, size)));
            say(&sizes.collect::<Result<BTreeMap<_, _>, _>>()?)
        }
        Order::Remove(prefix) => {
            for key in admin.keys(BUCKET, &prefix)? {
                admin.remove(BUCKET, &key)?;
            }
            say(&())
        }
        Order::Delay(ms) => {
            server.faults().clear();
            if ms > 0 {
                server.faults().add(FaultRule::new(FaultAction::Delay { ms }));
            }
            say(&())
        }
    }
}

fn count(requests: &[lockstep_devkit::RequestRecord]) -> BTreeMap<String, Counts> {
    let mut by_key: BTreeMap<String, Counts> = BTreeMap::new();
    for request in requests {
        let counts = by_key.entry(request.access_key.clone().unwrap_or_default()).or_default();
        counts.requests += 1;
        counts.puts += u64::from(matches!(request.operation.as_str(), "PutObject" | "UploadPart"));
        counts.sent += request.bytes_in;
        counts.received += request.bytes_out;
    }
    by_key
}

fn say(answer: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&line)?;
    Ok(stdout.flush()?)
}

/// The bench's side: the running server. It ends with this.
#[derive(Debug)]
pub(crate) struct Store {
    process: Server,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    endpoint: String,
}

impl Store {
    /// Starts it below `folder`, for these access keys.
    pub(crate) fn start(folder: &Path, keys: &[&str]) -> Result<Self> {
        let mut args = vec![SERVE.to_owned(), format!("--root={}", folder.join("s3").display())];
        args.extend(keys.iter().map(|key| format!("--key={key}")));
        let mut process = Server::start("the S3 server", Path::new(THIS), &args, &[], &folder.join("s3.log"), true)?;
        let (orders, answers) = process.pipes()?;
        let mut store = Self { process, orders, answers: BufReader::new(answers), endpoint: String::new() };
        store.endpoint = store.hear()?;
        Ok(store)
    }

    /// `http://127.0.0.1:port`
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(crate) fn cpu(&self) -> Result<Duration> {
        self.process.cpu()
    }

    /// What was asked since the last call, by access key.
    pub(crate) fn counts(&mut self) -> Result<BTreeMap<String, Counts>> {
        self.ask(&Order::Counts)
    }

    /// Key and size of all objects with this prefix.
    pub(crate) fn objects(&mut self, prefix: &str) -> Result<BTreeMap<String, u64>> {
        self.ask(&Order::Objects(prefix.to_owned()))
    }

    /// Removes all objects with this prefix.
    pub(crate) fn remove(&mut self, prefix: &str) -> Result<()> {
        self.ask(&Order::Remove(prefix.to_owned()))
    }

    /// Adds so much to each request from now on.
    pub(crate) fn delay(&mut self, ms: u64) -> Result<()> {
        self.ask(&Order::Delay(ms))
    }

    fn ask<T: for<'de> Deserialize<'de>>(&mut self, order: &Order) -> Result<T> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        if self.orders.write_all(&line).and_then(|()| self.orders.flush()).is_err() {
            return Err(self.process.failure("the S3 server is gone"));
        }
        self.hear()
    }

    fn hear<T: for<'de> Deserialize<'de>>(&mut self) -> Result<T> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if line.is_empty() {
            return Err(self.process.failure("the S3 server has ended"));
        }
        match serde_json::from_str(&line) {
            Ok(answer) => Ok(answer),
            Err(error) => bail!("the S3 server said {line:?}: {error}"),
        }
    }
}
