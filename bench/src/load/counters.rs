//! What coordinators have asked of others so far, and what their processes have taken.

use std::collections::BTreeMap;
use std::ops::Sub;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sqlx::{Connection as _, PgConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::rig::{COORDINATOR, Rig};

/// Counts by name.
pub(super) type Counts = BTreeMap<String, u64>;

/// All counters at one moment, or what they grew by between two.
#[derive(Debug, Clone)]
pub(super) struct Counters {
    pub(super) at: Instant,
    /// Calls of the store, by operation: each is one transaction.
    pub(super) transactions: Counts,
    /// Calls to agents, by method.
    pub(super) agent_calls: Counts,
    /// Calls by callers, by method.
    pub(super) served_calls: Counts,
    /// Requests to S3, by operation.
    pub(super) s3: Counts,
    /// User and system time of all coordinators.
    pub(super) cpu: Duration,
}

impl Counters {
    /// Of all coordinators together.
    pub(super) async fn read(rig: &Rig) -> Result<Self> {
        let mut counters = Self {
            at: Instant::now(),
            transactions: Counts::new(),
            agent_calls: Counts::new(),
            served_calls: Counts::new(),
            s3: Counts::new(),
            cpu: Duration::ZERO,
        };
        for replica in &rig.replicas {
            counters.cpu += replica.process.cpu()?;
            for line in metrics(&replica.http).await?.lines() {
                let Some((counts, name, value)) = counters.place(line) else { continue };
                *counts.entry(name).or_default() += value;
            }
        }
        for total in rig.s3.log().totals() {
            if total.access_key.as_deref() == Some(COORDINATOR) {
                *counters.s3.entry(total.operation).or_default() += total.requests;
            }
        }
        Ok(counters)
    }

    /// Where a line of metrics is counted.
    fn place(&mut self, line: &str) -> Option<(&mut Counts, String, u64)> {
        let (series, value) = line.rsplit_once(' ')?;
        let value = value.parse().ok()?;
        let (metric, labels) = series.split_once('{')?;
        let label = |name: &str| {
            let (_, rest) = labels.split_once(&format!("{name}=\""))?;
            rest.split_once('"').map(|(value, _)| value.to_owned())
        };
        match metric {
            "lockstep_store_seconds_count" => Some((&mut self.transactions, label("operation")?, value)),
            "lockstep_rpc_client_requests_total" => Some((&mut self.agent_calls, label("method")?, value)),
            "lockstep_rpc_server_requests_total" => Some((&mut self.served_calls, label("method")?, value)),
            _ => None,
        }
    }
}

impl Sub for &Counters {
    type Output = Counters;

    fn sub(self, before: &Counters) -> Counters {
        let grown = |after: &Counts, before: &Counts| {
            let of = |(name, count): (&String, &u64)| {
                let grown = count.saturating_sub(before.get(name).copied().unwrap_or_default());
                (grown > 0).then(|| (name.clone(), grown))
            };
            after.iter().filter_map(of).collect()
        };
        Counters {
            at: self.at,
            transactions: grown(&self.transactions, &before.transactions),
            agent_calls: grown(&self.agent_calls, &before.agent_calls),
            served_calls: grown(&self.served_calls, &before.served_calls),
            s3: grown(&self.s3, &before.s3),
            cpu: self.cpu.saturating_sub(before.cpu),
        }
    }
}

/// `/metrics` of one process.
async fn metrics(address: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).await.with_context(|| address.to_owned())?;
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{address} has no metrics: {}", answer.lines().next().unwrap_or(""));
    Ok(answer)
}

/// Transactions that Postgres itself has counted. A backend tells of its own at most ten seconds after they ended.
pub(super) async fn postgres_transactions(url: &str) -> Result<u64> {
    let mut connection = PgConnection::connect(url).await?;
    let count: i64 = sqlx::query_scalar(
        "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()",
    )
    .fetch_one(&mut connection)
    .await?;
    connection.close().await?;
    Ok(count.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing() -> Counters {
        Counters {
            at: Instant::now(),
            transactions: Counts::new(),
            agent_calls: Counts::new(),
            served_calls: Counts::new(),
            s3: Counts::new(),
            cpu: Duration::ZERO,
        }
    }

    #[test]
    fn lines_of_metrics_are_counted_where_they_belong_whatever_their_order_of_labels() {
        let mut counters = nothing();
        for (line, expected) in [
            (r#"lockstep_store_seconds_count{operation="apply",outcome="ok"} 3"#, Some(("apply", 3))),
            (r#"lockstep_rpc_client_requests_total{code="OK",method="Push",service="a"} 2"#, Some(("Push", 2))),
            (r#"lockstep_store_seconds_sum{operation="apply",outcome="ok"} 0.5"#, None),
            ("lockstep_rounds_active 1", None),
            ("# TYPE lockstep_store_seconds summary", None),
        ] {
            let found = counters.place(line).map(|(_, name, value)| (name, value));
            assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value)), "{line}");
        }
    }

    #[test]
    fn only_what_grew_is_left_of_a_difference() {
        let before = Counters { s3: [("Put".to_owned(), 2), ("Get".to_owned(), 1)].into(), ..nothing() };
        let after = Counters { s3: [("Put".to_owned(), 5), ("Get".to_owned(), 1)].into(), ..nothing() };
        assert_eq!((&after - &before).s3, [("Put".to_owned(), 3)].into());
    }
}
