//! The agents of a cluster: started, killed, stopped, looked at.

use std::{fs, process::ExitStatus};

use super::{BUCKET, Cluster, PIPELINE};
use crate::process::Process;

/// One agent: its process, if it runs, and where it is.
#[derive(Debug)]
pub struct AgentSlot {
    pub(super) process: Option<Process>,
    /// As the spec names it.
    pub address: String,
}

/// Access key of one agent; its secret is the key with `-secret` behind it.
pub fn agent_key(host_idx: u32) -> String {
    format!("agent-{host_idx}")
}

impl Cluster {
    /// Flags that tell the agent of one host who it is.
    pub fn identity(&self, idx: usize) -> Vec<String> {
        match self.options.hosts {
            0 => vec!["--solo".to_owned()],
            n => vec!["--host-idx".to_owned(), idx.to_string(), "--n-hosts".to_owned(), n.to_string()],
        }
    }

    /// Starts (again) the agent of one host as what it is.
    pub async fn start_agent(&mut self, idx: usize) {
        let identity = self.identity(idx);
        let key = agent_key(u32::try_from(idx).expect("few hosts"));
        self.start_agent_as(idx, &identity, &[], &format!("{key}-secret")).await;
    }

    /// Starts the agent of one host with these identity flags, further flags and this S3 secret.
    pub async fn start_agent_as(&mut self, idx: usize, identity: &[String], flags: &[String], secret: &str) {
        let started = self.try_start_agent_as(idx, identity, flags, secret).await;
        assert!(started, "agent {idx} ended before it was ready\n{}", self.agent_log(idx));
    }

    /// As [`Self::start_agent_as`]. False: it ended before it listened.
    pub async fn try_start_agent_as(
        &mut self,
        idx: usize,
        identity: &[String],
        flags: &[String],
        secret: &str,
    ) -> bool {
        let listen = match self.agents[idx].address.strip_prefix("http://") {
            None | Some("") => self.listen(),
            Some(address) => address.to_owned(),
        };
        let addr_file = self.path(&format!("agent{idx}.addr"));
        let _ = fs::remove_file(&addr_file);
        let endpoint = self.endpoint();
        let allowed = format!("s3://{BUCKET}/{PIPELINE}?endpoint={endpoint}&path_style=true");
        let mut args: Vec<String> =
            ["--insecure", "--listen", &listen, "--store", self.options.store, "--allow-location", &allowed]
                .iter()
                .map(|&arg| arg.to_owned())
                .collect();
        if !flags.iter().any(|flag| flag == "--pipeline") {
            args.extend(["--pipeline".to_owned(), PIPELINE.to_owned()]);
        }
        args.extend(["--dir".to_owned(), self.hosts[idx].dir.display().to_string()]);
        args.extend(["--addr-file".to_owned(), addr_file.display().to_string()]);
        args.extend_from_slice(identity);
        args.extend_from_slice(flags);
        let key = agent_key(u32::try_from(idx).expect("few hosts"));
        let env = [
            ("AWS_ACCESS_KEY_ID", key.as_str()),
            ("AWS_SECRET_ACCESS_KEY", secret),
            (lockstep_failpoint::VARIABLE, &self.failpoints),
        ];
        let log = self.path(&format!("agent{idx}.log"));
        let mut process = Process::start(&format!("agent {idx}"), "lockstep-agent", &args, &env, &log);
        let Ok(address) = process.try_address_file(&addr_file).await else {
            self.agents[idx].process = None;
            return false;
        };
        let address = address.strip_prefix("grpc=").unwrap_or(&address).lines().next().unwrap_or_default().to_owned();
        self.agents[idx] = AgentSlot { process: Some(process), address: format!("http://{address}") };
        true
    }

    /// Restarts one agent so that it serves HTTP; where.
    pub async fn restart_agent_with_http(&mut self, idx: usize) -> String {
        let free = self.free_address();
        self.kill_agent(idx);
        let identity = self.identity(idx);
        let flags = ["--http-listen".to_owned(), free.clone()];
        self.start_agent_as(idx, &identity, &flags, &format!("agent-{idx}-secret")).await;
        free
    }

    /// Waits until one agent has killed itself at a failpoint.
    pub async fn agent_killed(&mut self, idx: usize) {
        self.agents[idx].process.as_mut().expect("the agent runs").killed().await;
        self.agents[idx].process = None;
    }

    /// kill -9 of one agent.
    pub fn kill_agent(&mut self, idx: usize) {
        self.agents[idx].process.take().expect("the agent runs").kill();
    }

    /// SIGTERM to one agent; its exit status.
    pub async fn terminate_agent(&mut self, idx: usize) -> ExitStatus {
        self.agents[idx].process.take().expect("the agent runs").terminate().await
    }

    /// Stops or continues one agent (SIGSTOP, SIGCONT).
    pub fn pause_agent(&self, idx: usize, paused: bool) {
        self.agents[idx].process.as_ref().expect("the agent runs").pause(paused);
    }

    /// What one agent has logged.
    pub fn agent_log(&self, idx: usize) -> String {
        fs::read_to_string(self.path(&format!("agent{idx}.log"))).unwrap_or_default()
    }

    /// Greatest resident memory of one agent so far, in bytes.
    pub fn agent_peak_memory(&self, idx: usize) -> u64 {
        self.agents[idx].process.as_ref().expect("the agent runs").peak_memory()
    }

    /// Bytes that one agent has read from files so far; what comes over sockets is not in it.
    pub fn agent_bytes_read(&self, idx: usize) -> u64 {
        self.agents[idx].process.as_ref().expect("the agent runs").bytes_read()
    }

    /// Loses one host's disk while its agent restarts.
    pub async fn lose_disk(&mut self, idx: usize) {
        self.kill_agent(idx);
        self.hosts[idx].wipe();
        self.start_agent(idx).await;
    }
}
