//! The coordinator of a cluster and further replicas of it: started, killed, stopped, looked at.

use std::{
    fs,
    process::{Command, ExitStatus},
};

use lockstep_client::{LockstepClient, RetryPolicy};

use super::{Cluster, Pooled};
use crate::{
    clock,
    process::{Process, binary},
    wait,
};

/// Access key of the coordinator.
pub const COORDINATOR_KEY: &str = "coordinator";

impl Cluster {
    /// Starts (again) the coordinator on the address it had.
    pub async fn start_coordinator(&mut self) {
        self.start_coordinator_with_secret(&format!("{COORDINATOR_KEY}-secret")).await;
    }

    /// Starts the coordinator with this S3 secret.
    pub async fn start_coordinator_with_secret(&mut self, secret: &str) {
        let listen = if self.coordinator_address.is_empty() { self.listen() } else { self.coordinator_address.clone() };
        let (process, address) = self.another_coordinator("coordinator", &listen, secret).await;
        self.client = client_of(&format!("http://{address}"));
        self.coordinator_address = address;
        self.coordinator = Some(process);
    }

    /// A further replica over the same database; its process and gRPC address.
    pub async fn another_coordinator(&self, name: &str, listen: &str, secret: &str) -> (Process, String) {
        let database = self.options.database_url.as_deref().unwrap_or(self.database.url());
        self.coordinator_on(database, name, listen, secret).await
    }

    /// A replica over this cluster's S3 server but another cluster's database.
    pub async fn another_coordinator_over(&self, other: &Self, name: &str) -> (Process, String) {
        self.coordinator_on(other.database.url(), name, "127.0.0.1:0", &format!("{COORDINATOR_KEY}-secret")).await
    }

    async fn coordinator_on(&self, database: &str, name: &str, listen: &str, secret: &str) -> (Process, String) {
        let addr_file = self.path(&format!("{name}.addr"));
        let _ = fs::remove_file(&addr_file);
        let mut args: Vec<String> = [
            "--insecure",
            "--listen",
            listen,
            "--http-listen",
            "127.0.0.1:0",
            "--replica",
            name,
            "--lease",
            self.options.lease,
            "--renew-every",
            self.options.renew_every,
            "--long-poll",
            "2s",
            "--unreachable-after",
            self.options.unreachable_after,
            "--store-patience",
            self.options.store_patience,
            "--retry-base",
            "50ms",
            "--retry-max",
            "500ms",
        ]
        .iter()
        .map(|&arg| arg.to_owned())
        .collect();
        args.extend(self.options.coordinator_flags.iter().map(|&flag| flag.to_owned()));
        args.extend(["--addr-file".to_owned(), addr_file.display().to_string()]);
        let name_of_database = database.rsplit('/').next().and_then(|name| name.split('?').next()).unwrap_or_default();
        let pooled = self.pooler.as_ref().map(|pooler| pooler.url(name_of_database));
        let mut env = vec![
            ("DATABASE_URL", pooled.as_deref().unwrap_or(database)),
            ("AWS_ACCESS_KEY_ID", COORDINATOR_KEY),
            ("AWS_SECRET_ACCESS_KEY", secret),
            (lockstep_failpoint::VARIABLE, &self.failpoints),
        ];
        let library = self.options.coordinator_clock.map(|_| clock::library());
        if let (Some(by), Some(library)) = (self.options.coordinator_clock, &library) {
            env.extend(clock::shifted(by, library));
        }
        if self.options.pooled == Some(Pooled::Around) {
            env.push(("LOCKSTEP_DIRECT_DATABASE_URL", database));
        }
        let log = self.path(&format!("{name}.log"));
        let mut process = Process::start(name, "lockstep-coordinator", &args, &env, &log);
        let text = process.address_file(&addr_file).await;
        let address =
            text.lines().find_map(|line| line.strip_prefix("grpc=")).expect("grpc= stands in the file").to_owned();
        (process, address)
    }

    /// Stops or continues the coordinator (SIGSTOP, SIGCONT).
    pub fn pause_coordinator(&self, paused: bool) {
        self.coordinator.as_ref().expect("the coordinator runs").pause(paused);
    }

    /// kill -9 of the coordinator.
    pub fn kill_coordinator(&mut self) {
        self.coordinator.take().expect("the coordinator runs").kill();
    }

    /// kill -9 of the coordinator, if it runs.
    pub fn stop_coordinator(&mut self) {
        self.coordinator = None;
    }

    /// Waits until the coordinator has killed itself at a failpoint.
    pub async fn coordinator_killed(&mut self) {
        self.coordinator.as_mut().expect("the coordinator runs").killed().await;
        self.coordinator = None;
    }

    /// SIGTERM to the coordinator; its exit status.
    pub async fn terminate_coordinator(&mut self) -> ExitStatus {
        self.coordinator.take().expect("the coordinator runs").terminate().await
    }

    /// What the coordinator has logged.
    pub fn coordinator_log(&self) -> String {
        fs::read_to_string(self.path("coordinator.log")).unwrap_or_default()
    }

    /// Where the coordinator serves HTTP.
    pub fn coordinator_http(&self) -> String {
        let text = fs::read_to_string(self.path("coordinator.addr")).expect("the coordinator wrote its addresses");
        text.lines().find_map(|line| line.strip_prefix("http=")).expect("http= stands in the file").to_owned()
    }

    /// gRPC address of the coordinator.
    pub fn coordinator_url(&self) -> String {
        format!("http://{}", self.coordinator_address)
    }
}

/// What an operator runs where coordinators reach Postgres through a pooler only.
pub(super) fn migrate(database: &str) {
    let mut command = Command::new(binary("lockstep-coordinator"));
    let output = command.arg("migrate").env("DATABASE_URL", database).output().expect("the command runs");
    assert!(output.status.success(), "migrate: {}", String::from_utf8_lossy(&output.stderr));
}

/// A client that never retries: tests look at each answer themselves.
pub fn client_of(address: &str) -> LockstepClient {
    LockstepClient::builder(address).actor("scenario").retry(RetryPolicy::never()).connect().expect("a good address")
}

/// The gRPC connection is made lazily: the first call may come before the process listens, so callers wait for this.
pub async fn answers(client: &LockstepClient) {
    wait::until("the coordinator answers", || async {
        client.list_pipelines(1).await.map_err(|error| error.to_string())
    })
    .await;
}
