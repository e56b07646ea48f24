//! Flags and environment of the coordinator, and what they may not be.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};
use lockstep_protocol::{round::RetryPolicy, unit};
use lockstep_telemetry::LogFormat;

use crate::{dispatch::GarbageOptions, store::Pooler};

/// Shortest deadline a round may be given.
pub const MIN_DEADLINE: Duration = Duration::from_secs(1);
/// Longest deadline a round may be given.
pub const MAX_DEADLINE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Longest grace period and interval of collections.
const MAX_GC_GRACE: Duration = Duration::from_secs(366 * 24 * 3600);
/// Shortest interval of collections.
const MIN_GC_INTERVAL: Duration = Duration::from_millis(100);

/// A database URL. It may hold a password, so it prints as nothing but its place.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// The URL itself, for the driver only.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether it has the form of a URL at all. The driver takes any scheme and makes a database name of what it doesn't understand, which
    /// errors then show, password and all.
    fn is_postgres(&self) -> bool {
        ["postgres://", "postgresql://"].iter().any(|scheme| self.0.starts_with(scheme))
    }
}

impl FromStr for DatabaseUrl {
    type Err = std::convert::Infallible;

    /// Takes anything: a parser's error would show the text.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DatabaseUrl(..)")
    }
}

const AFTER_HELP: &str = "\
Examples:
  A coordinator over an own Postgres; migrations run by themselves:
    DATABASE_URL=postgres://lockstep:secret@db:5432/lockstep lockstep-coordinator --insecure

  A second replica beside it (any number, none is special; give each its own name):
    DATABASE_URL=... lockstep-coordinator --insecure --replica lockstep-1 --listen 0.0.0.0:7410 --http-listen 0.0.0.0:7411

  Free ports, for a supervisor that reads where it listens:
    DATABASE_URL=... lockstep-coordinator --insecure --listen 127.0.0.1:0 --http-listen 127.0.0.1:0 --addr-file addrs

  Behind PgBouncer in transaction mode; LISTEN and migrations go around it:
    DATABASE_URL=postgres://...@pgbouncer:6432/lockstep LOCKSTEP_DIRECT_DATABASE_URL=postgres://...@db:5432/lockstep \
      lockstep-coordinator --insecure

  The same without a way around it: changes of other replicas are found by polling, and each upgrade begins with
    DATABASE_URL=postgres://...@db:5432/lockstep lockstep-coordinator migrate

  No Postgres at hand: `lockstep dev` starts one, an S3 server, a coordinator and three agents on this machine.

Endpoints:
  gRPC, --listen         lockstep.v1.Coordinator, grpc.health.v1.Health, server reflection
  HTTP, --http-listen    /healthz, /readyz (asks the database), /metrics (Prometheus)

Credentials for S3 come from the standard AWS chain (environment, profile, IRSA, IMDS); AWS_ENDPOINT_URL names the endpoint of
locations that name none. Traces are exported over OTLP if OTEL_EXPORTER_OTLP_ENDPOINT is set.

Exit codes: 0 stopped by SIGTERM or SIGINT, 1 failed, 2 wrong flags.";

/// What the process does instead of serving.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Brings the database's schema up to this version and ends.
    ///
    /// A coordinator does so by itself at start wherever it reaches Postgres without a pooler, by --database-url or --direct-database-url; this is for
    /// those that don't. Older replicas may go on running meanwhile unless it says otherwise. Run twice it finds nothing to do.
    Migrate,
}

/// Values of --database-pooler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PoolerChoice {
    /// Look at start.
    Auto,
    /// There is one.
    Yes,
    /// There is none that matters.
    No,
}

impl From<PoolerChoice> for Pooler {
    fn from(choice: PoolerChoice) -> Self {
        match choice {
            PoolerChoice::Auto => Self::Ask,
            PoolerChoice::Yes => Self::Yes,
            PoolerChoice::No => Self::No,
        }
    }
}

/// Keeps the push and pull rounds of pipelines as persisted state machines in Postgres and drives them.
///
/// Every flag can be given by the environment variable that stands beside it.
#[derive(Debug, Clone, Parser)]
#[command(name = "lockstep-coordinator", version, after_help = AFTER_HELP)]
pub struct CoordinatorArgs {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Where Postgres is, or a pooler before it: postgres://user:password@host:port/database. Better given as DATABASE_URL: other
    /// users of the machine can read command lines.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL", global = true)]
    pub database_url: Option<DatabaseUrl>,

    /// Where Postgres itself is, if --database-url leads to a pooler such as PgBouncer: for LISTEN and migrations, which need a
    /// connection of their own. Without it, replicas find each other's changes by polling, and `lockstep-coordinator migrate` makes
    /// the migrations.
    #[arg(long, env = "LOCKSTEP_DIRECT_DATABASE_URL", hide_env_values = true, value_name = "URL", global = true)]
    pub direct_database_url: Option<DatabaseUrl>,

    /// Whether --database-url leads to a pooler that gives server connections away after each transaction. auto looks: a server
    /// process that is older than our connection is a pooler's. Say no for a pooler in session mode that is taken for one.
    #[arg(long, env = "LOCKSTEP_DATABASE_POOLER", default_value = "auto", value_name = "WHETHER", global = true)]
    pub database_pooler: PoolerChoice,

    /// Address of gRPC.
    #[arg(long, env = "LOCKSTEP_LISTEN", default_value = "0.0.0.0:7400", value_name = "ADDR")]
    pub listen: SocketAddr,

    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, env = "LOCKSTEP_HTTP_LISTEN", default_value = "0.0.0.0:7401", value_name = "ADDR")]
    pub http_listen: SocketAddr,

    /// Serve without TLS and tokens. Required: there is no other mode yet.
    #[arg(long, env = "LOCKSTEP_INSECURE")]
    pub insecure: bool,

    /// Name of this replica in leases, audit events and logs.
    /// Default: host name and process id.
    #[arg(long, env = "LOCKSTEP_REPLICA", value_name = "NAME")]
    pub replica: Option<String>,

    /// Connections to Postgres at most.
    #[arg(long, env = "LOCKSTEP_DB_CONNECTIONS", default_value_t = 16, value_name = "N",
        value_parser = clap::value_parser!(u32).range(2..=1000))]
    pub db_connections: u32,

    /// How long to try for Postgres at start, which may still be starting itself.
    #[arg(long, env = "LOCKSTEP_DATABASE_WAIT", default_value = "15s", value_name = "DURATION",
        value_parser = duration, global = true)]
    pub database_wait: Duration,

    /// How long a statement may take before Postgres gives it up; a whole call to the database may take twice as long.
    #[arg(long, env = "LOCKSTEP_DB_STATEMENT_TIMEOUT", default_value = "15s", value_name = "DURATION",
        value_parser = duration)]
    pub db_statement_timeout: Duration,

    /// How long a statement may wait for a lock before Postgres gives it up.
    #[arg(long, env = "LOCKSTEP_DB_LOCK_TIMEOUT", default_value = "5s", value_name = "DURATION",
        value_parser = duration)]
    pub db_lock_timeout: Duration,

    /// How long a transaction may hear nothing from this replica before Postgres ends it and frees its locks.
    #[arg(long, env = "LOCKSTEP_DB_IDLE_IN_TRANSACTION_TIMEOUT", default_value = "10s", value_name = "DURATION",
        value_parser = duration)]
    pub db_idle_in_transaction_timeout: Duration,

    /// How long a claimed round belongs to a replica that doesn't renew it; a killed replica's rounds are driven again after this.
    #[arg(long, env = "LOCKSTEP_LEASE", default_value = "10s", value_name = "DURATION",
        value_parser = duration)]
    pub lease: Duration,

    /// How often a lease is renewed; at most half of --lease.
    #[arg(long, env = "LOCKSTEP_RENEW_EVERY", default_value = "3s", value_name = "DURATION",
        value_parser = duration)]
    pub renew_every: Duration,

    /// How long an agent may hold a status call before it answers.
    #[arg(long, env = "LOCKSTEP_LONG_POLL", default_value = "20s", value_name = "DURATION",
        value_parser = duration)]
    pub long_poll: Duration,

    /// How long an agent may be silent before its attempt counts as failed.
    #[arg(long, env = "LOCKSTEP_UNREACHABLE_AFTER", default_value = "30s", value_name = "DURATION",
        value_parser = duration)]
    pub unreachable_after: Duration,

    /// How long a transfer may go without moving a byte before its attempt counts as failed.
    #[arg(long, env = "LOCKSTEP_STALL_AFTER", default_value = "60s", value_name = "DURATION",
        value_parser = duration)]
    pub stall_after: Duration,

    /// How long a lookup in the bucket is repeated while S3 throttles or does not answer, before the round fails with that.
    #[arg(long, env = "LOCKSTEP_STORE_PATIENCE", default_value = "10s", value_name = "DURATION",
        value_parser = duration)]
    pub store_patience: Duration,

    /// Rounds that this replica drives at a time.
    #[arg(long, env = "LOCKSTEP_MAX_ROUNDS", default_value_t = 256, value_name = "N",
        value_parser = parse_max_rounds)]
    pub max_rounds: usize,

    /// Attempts of one host in one round before the round fails.
    #[arg(long, env = "LOCKSTEP_MAX_ATTEMPTS", default_value_t = 5, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub max_attempts: u32,

    /// Back-off after a host's first failed attempt; doubles each time.
    #[arg(long, env = "LOCKSTEP_RETRY_BASE", default_value = "500ms", value_name = "DURATION",
        value_parser = duration)]
    pub retry_base: Duration,

    /// Longest back-off.
    #[arg(long, env = "LOCKSTEP_RETRY_MAX", default_value = "30s", value_name = "DURATION",
        value_parser = duration)]
    pub retry_max: Duration,

    /// Deadline of a push whose caller gives none; 1s to 7d.
    #[arg(long, env = "LOCKSTEP_PUSH_DEADLINE", default_value = "1h", value_name = "DURATION",
        value_parser = duration)]
    pub push_deadline: Duration,

    /// Deadline of a pull whose caller gives none; 1s to 7d.
    #[arg(long, env = "LOCKSTEP_PULL_DEADLINE", default_value = "1h", value_name = "DURATION",
        value_parser = duration)]
    pub pull_deadline: Duration,

    /// How long a retired checkpoint keeps its objects, for pulls of other databases that may be reading it.
    #[arg(long, env = "LOCKSTEP_GC_GRACE", default_value = "24h", value_name = "DURATION",
        value_parser = duration)]
    pub gc_grace: Duration,

    /// How far apart collections of garbage begin that nobody asks for: orphans of every pipeline that owns its location, checkpoints
    /// of those with a retention. 0s: garbage is only collected when asked for.
    #[arg(long, env = "LOCKSTEP_GC_INTERVAL", default_value = "1h", value_name = "DURATION",
        value_parser = duration)]
    pub gc_interval: Duration,

    /// Deletes that one collection of garbage sends in a second at most.
    #[arg(long, env = "LOCKSTEP_GC_DELETES_PER_SECOND", default_value_t = 200, value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub gc_deletes_per_second: u32,

    /// After SIGTERM: time to hand rounds back and answer calls that are under way.
    #[arg(long, env = "LOCKSTEP_SHUTDOWN_GRACE", default_value = "25s", value_name = "DURATION",
        value_parser = duration)]
    pub shutdown_grace: Duration,

    /// Checkpoints are re-read all the time, those verified longest ago first, within so many bytes a day, by one replica at a time and never while their pipeline has
    /// a round; damaged ones are marked. 0B: none.
    #[arg(long, env = "LOCKSTEP_VERIFY_BYTES_PER_DAY", default_value = "0B", value_name = "SIZE", value_parser = size)]
    pub verify_bytes_per_day: u64,

    /// Writes `grpc=host:port` and `http=host:port`, one a line, to this file once both are bound.
    #[arg(long, env = "LOCKSTEP_ADDR_FILE", value_name = "PATH")]
    pub addr_file: Option<PathBuf>,

    /// How log lines on stderr look: text or json.
    #[arg(long, env = "LOCKSTEP_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    pub log_format: LogFormat,

    /// What is logged, for example info,lockstep_coordinator=debug. Default: RUST_LOG, else info.
    #[arg(long, env = "LOCKSTEP_LOG", value_name = "FILTER")]
    pub log: Option<String>,
}

impl CoordinatorArgs {
    /// What flags say of each other. The message says what to write instead.
    pub fn check(&self) -> Result<(), String> {
        if !self.insecure {
            return Err("this version serves neither TLS nor tokens: say --insecure (or LOCKSTEP_INSECURE=true) to run it so, and \
                        keep its ports away from strangers"
                .to_owned());
        }
        self.check_database()?;
        let show = |duration: Duration| humantime::format_duration(duration).to_string();
        for (flag, value) in [
            ("--db-statement-timeout", self.db_statement_timeout),
            ("--db-lock-timeout", self.db_lock_timeout),
            ("--db-idle-in-transaction-timeout", self.db_idle_in_transaction_timeout),
            ("--lease", self.lease),
            ("--renew-every", self.renew_every),
            ("--long-poll", self.long_poll),
            ("--unreachable-after", self.unreachable_after),
            ("--stall-after", self.stall_after),
            ("--store-patience", self.store_patience),
            ("--retry-base", self.retry_base),
            ("--retry-max", self.retry_max),
        ] {
            if !(Duration::from_millis(1)..=Duration::from_secs(24 * 3600)).contains(&value) {
                return Err(format!("{flag} {} is not between 1ms and 1d", show(value)));
            }
        }
        if self.renew_every > self.lease / 2 {
            return Err(format!(
                "--renew-every {} is more than half of --lease {}: one lost renewal would lose the lease",
                show(self.renew_every),
                show(self.lease)
            ));
        }
        if self.retry_base > self.retry_max {
            return Err(format!(
                "--retry-base {} is above --retry-max {}",
                show(self.retry_base),
                show(self.retry_max)
            ));
        }
        for (flag, value) in [("--push-deadline", self.push_deadline), ("--pull-deadline", self.pull_deadline)] {
            if !(MIN_DEADLINE..=MAX_DEADLINE).contains(&value) {
                return Err(format!("{flag} {} is not between 1s and 7d", show(value)));
            }
        }
        if self.gc_grace > MAX_GC_GRACE {
            return Err(format!("--gc-grace {} is more than 366d", show(self.gc_grace)));
        }
        if !self.gc_interval.is_zero() && !(MIN_GC_INTERVAL..=MAX_GC_GRACE).contains(&self.gc_interval) {
            return Err(format!("--gc-interval {} is neither 0s nor between 100ms and 366d", show(self.gc_interval)));
        }
        if self.replica.as_ref().is_some_and(|name| !is_name(name)) {
            return Err("--replica: a replica's name has 1 to 128 printable ASCII characters and no space".to_owned());
        }
        Ok(())
    }

    /// The part that `migrate` needs too.
    pub fn check_database(&self) -> Result<(), String> {
        let urls = [("DATABASE_URL", &self.database_url), ("LOCKSTEP_DIRECT_DATABASE_URL", &self.direct_database_url)];
        for (name, url) in urls {
            if url.as_ref().is_some_and(|url| !url.is_postgres()) {
                return Err(format!(
                    "{name} does not begin with postgres://, as in postgres://user:password@host:port/database (not shown, it may hold a \
                     password)"
                ));
            }
        }
        Ok(())
    }

    /// How attempts of a round are retried.
    pub const fn retry(&self) -> RetryPolicy {
        RetryPolicy { max_attempts: self.max_attempts, base: self.retry_base, max: self.retry_max }
    }

    /// How garbage is collected.
    pub fn garbage(&self) -> GarbageOptions {
        GarbageOptions {
            grace: self.gc_grace,
            every: (!self.gc_interval.is_zero()).then_some(self.gc_interval),
            deletes_per_second: self.gc_deletes_per_second,
        }
    }

    /// Name of this replica: as given, else host name and process id, which no two living replicas share.
    pub fn replica_name(&self) -> String {
        self.replica.clone().unwrap_or_else(|| {
            let host = ["/proc/sys/kernel/hostname", "/etc/hostname"]
                .iter()
                .find_map(|path| std::fs::read_to_string(path).ok())
                .map(|name| name.trim().to_owned())
                .filter(|name| is_name(name))
                .unwrap_or_else(|| "coordinator".to_owned());
            format!("{host}-{}", std::process::id())
        })
    }
}

fn parse_max_rounds(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(rounds @ 1..=100_000) => Ok(rounds),
        _ => Err("is not a number from 1 to 100000".to_owned()),
    }
}

fn is_name(name: &str) -> bool {
    (1..=128).contains(&name.len()) && name.bytes().all(|c| c.is_ascii_graphic())
}

/// Written as in specs; what is wrong is said with an example.
fn duration(text: &str) -> Result<Duration, String> {
    unit::duration("the value", text).map_err(|problem| problem.message)
}

fn size(text: &str) -> Result<u64, String> {
    unit::size("the value", text).map_err(|problem| problem.message)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn args(flags: &[&str]) -> CoordinatorArgs {
        CoordinatorArgs::try_parse_from(["lockstep-coordinator"].iter().chain(flags)).unwrap()
    }

    #[test]
    fn the_command_is_well_formed_and_every_flag_has_a_variable() {
        let command = CoordinatorArgs::command();
        command.clone().debug_assert();
        for flag in command.get_arguments().filter(|flag| flag.get_id() != "help" && flag.get_id() != "version") {
            let variable = flag.get_env().unwrap_or_else(|| panic!("{} has no variable", flag.get_id()));
            let variable = variable.to_str().unwrap();
            assert!(variable.starts_with("LOCKSTEP_") || variable == "DATABASE_URL", "{variable}");
            assert!(flag.get_help().is_some(), "{} has no help", flag.get_id());
        }
    }

    #[test]
    fn defaults_are_those_of_the_protocol() {
        let args = args(&["--insecure"]);
        assert_eq!(args.check(), Ok(()));
        assert_eq!((args.lease, args.renew_every), (Duration::from_secs(10), Duration::from_secs(3)));
        assert_eq!((args.long_poll, args.unreachable_after), (Duration::from_secs(20), Duration::from_secs(30)));
        assert_eq!(args.retry(), RetryPolicy::default());
        assert_eq!((args.push_deadline, args.pull_deadline), (Duration::from_secs(3600), Duration::from_secs(3600)));
        assert_eq!(args.shutdown_grace, Duration::from_secs(25));
        assert_eq!(args.garbage(), GarbageOptions::default());
        assert_eq!(args.gc_grace, Duration::from_secs(24 * 3600));
        assert_eq!((args.listen.port(), args.http_listen.port()), (7400, 7401));
    }

    #[test]
    fn what_contradicts_itself_is_refused_by_flag() {
        for (flags, named) in [
            (&["--lease", "1s", "--renew-every", "900ms"][..], "--renew-every"),
            (&["--retry-base", "1m"], "--retry-base"),
            (&["--push-deadline", "8d"], "--push-deadline"),
            (&["--pull-deadline", "10ms"], "--pull-deadline"),
            (&["--long-poll", "0s"], "--long-poll"),
            (&["--replica", "a b"], "--replica"),
            (&["--gc-interval", "1ms"], "--gc-interval"),
            (&["--gc-grace", "400d"], "--gc-grace"),
        ] {
            let flags: Vec<&str> = flags.iter().copied().chain(["--insecure"]).collect();
            let refused = args(&flags).check().unwrap_err();
            assert!(refused.contains(named), "{refused}");
        }
        assert!(args(&[]).check().unwrap_err().contains("--insecure"));
    }

    #[test]
    fn durations_and_sizes_have_units_and_what_has_none_is_answered_with_an_example() {
        let refused = |flags: [&str; 2]| {
            let all = ["lockstep-coordinator", "--insecure"].iter().chain(&flags).copied().collect::<Vec<_>>();
            CoordinatorArgs::try_parse_from(all).unwrap_err().to_string()
        };
        for value in ["soon", "10"] {
            let told = refused(["--gc-grace", value]);
            assert!(told.contains("--gc-grace") && told.contains("for example 10s"), "{told}");
        }
        let told = refused(["--verify-bytes-per-day", "50"]);
        assert!(told.contains("--verify-bytes-per-day") && told.contains("for example 16MiB"), "{told}");
        assert_eq!(args(&["--insecure", "--verify-bytes-per-day", "50GiB"]).verify_bytes_per_day, 50 << 30);
    }

    #[test]
    fn a_password_shows_neither_in_debug_nor_in_help() {
        let wrong = args(&["--insecure", "--database-url", "lockstep:hunter2@db/lockstep"]);
        let refused = wrong.check().unwrap_err();
        assert!(refused.contains("postgres://") && !refused.contains("hunter2"), "{refused}");
        let args = args(&["--database-url", "postgres://lockstep:hunter2@db/lockstep"]);
        assert!(!format!("{args:?}").contains("hunter2"));
        assert_eq!(args.database_url.unwrap().expose(), "postgres://lockstep:hunter2@db/lockstep");
    }

    #[test]
    fn two_replicas_of_one_machine_have_two_names() {
        assert!(args(&[]).replica_name().ends_with(&format!("-{}", std::process::id())));
        assert_eq!(args(&["--replica", "lockstep-1"]).replica_name(), "lockstep-1");
    }
}
