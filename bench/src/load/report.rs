//! The figures for people, and for programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::counters::Counts;
use super::run::Figures;

/// What a push round may cost, from the project's targets.
#[derive(Debug, PartialEq)]
struct Bound {
    what: String,
    figure: f64,
    bound: f64,
    unit: &'static str,
}

#[expect(clippy::cast_precision_loss, reason = "exact below 2^52")]
fn number(count: u64) -> f64 {
    count as f64
}

fn mib(bytes: u64) -> f64 {
    number(bytes) / f64::from(1 << 20)
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn sum(counts: &Counts) -> u64 {
    counts.values().sum()
}

impl Figures {
    fn rounds(&self) -> u64 {
        (self.overheads.len() + self.failures.len()) as u64
    }

    /// A share of the overheads is at most this.
    fn overhead(&self, share: f64) -> Duration {
        let last = self.overheads.len().saturating_sub(1);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "small and positive"
        )]
        let place = (share * last as f64).round() as usize;
        self.overheads.get(place).copied().unwrap_or_default()
    }

    fn a_round(&self, count: u64) -> f64 {
        number(count) / number(self.rounds().max(1))
    }

    fn each(&self, counts: &Counts) -> BTreeMap<String, f64> {
        counts.iter().map(|(name, count)| (name.clone(), self.a_round(*count))).collect()
    }

    fn idle_a_second(&self) -> f64 {
        number(sum(&self.idle.transactions)) / self.idle_for.as_secs_f64()
    }

    /// Without what the same time costs when nothing happens.
    fn transactions(&self) -> f64 {
        let idle = self.idle_a_second() * self.lasted.as_secs_f64();
        (number(sum(&self.grown.transactions)) - idle).max(0.0) / number(self.rounds().max(1))
    }

    /// The same as Postgres counted it.
    fn postgres_transactions(&self) -> Option<f64> {
        let counted = self.postgres?;
        let idle = self.idle_a_second() * counted.counted_for.as_secs_f64();
        Some((number(counted.transactions) - idle).max(0.0) / number(self.rounds().max(1)))
    }

    fn cores(&self) -> f64 {
        self.grown.cpu.as_secs_f64() / self.lasted.as_secs_f64()
    }

    fn bounds(&self) -> Vec<Bound> {
        let hosts = f64::from(self.scope.hosts);
        let mut bounds = vec![Bound {
            what: "database transactions a round".to_owned(),
            figure: self.transactions(),
            bound: 12.0 + hosts / 8.0,
            unit: "",
        }];
        let mut bound =
            |what: &str, figure, bound, unit| bounds.push(Bound { what: what.to_owned(), figure, bound, unit });
        match (self.scope.pipelines, self.scope.hosts) {
            (1, 3) => bound("overhead, 3 hosts, p50", ms(self.overhead(0.5)), 40.0, "ms"),
            (1, 64) => bound("overhead, 64 hosts, p50", ms(self.overhead(0.5)), 150.0, "ms"),
            (1000.., 16..) => {
                bound("overhead, p99", ms(self.overhead(0.99)), 1000.0, "ms");
                bound("peak RSS", mib(self.peaks.rss), 512.0, "MiB");
                bound("pushes missed", number(self.missed), 0.0, "");
            }
            _ => {}
        }
        bounds
    }
}

/// For people.
pub(super) fn render(figures: &Figures) -> String {
    let mut text = String::new();
    let scope = &figures.scope;
    let _ = writeln!(
        text,
        "{} pipelines × {} hosts, one push each {:?}, {} coordinator(s), transfers of {:?}",
        scope.pipelines, scope.hosts, scope.every, scope.replicas, scope.transfer
    );
    let rounds = figures.rounds();
    let mut row = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:32} {value}");
    };
    row(
        "rounds",
        format!(
            "{rounds} in {:.1} s, {:.2}/s",
            figures.lasted.as_secs_f64(),
            number(rounds) / figures.lasted.as_secs_f64()
        ),
    );
    row(
        "failed, pushes missed, verified",
        format!("{}, {}, {}", figures.failures.len(), figures.missed, figures.verified),
    );
    let [p50, p90, p99, most] = [0.5, 0.9, 0.99, 1.0].map(|share| ms(figures.overhead(share)));
    row("overhead beyond the slowest agent", format!("p50 {p50:.1} ms, p90 {p90:.1}, p99 {p99:.1}, most {most:.1}"));
    let postgres =
        figures.postgres_transactions().map_or_else(String::new, |count| format!(" (by Postgres: {count:.1})"));
    row(
        "database transactions a round",
        format!("{:.1}{postgres}: {}", figures.transactions(), list(&figures.each(&figures.grown.transactions))),
    );
    row(
        "calls to agents a round",
        format!(
            "{:.1}: {}",
            figures.a_round(sum(&figures.grown.agent_calls)),
            list(&figures.each(&figures.grown.agent_calls))
        ),
    );
    row(
        "calls by callers a round",
        format!(
            "{:.1}: {}",
            figures.a_round(sum(&figures.grown.served_calls)),
            list(&figures.each(&figures.grown.served_calls))
        ),
    );
    row(
        "S3 requests a round",
        format!("{:.1}: {}", figures.a_round(sum(&figures.grown.s3)), list(&figures.each(&figures.grown.s3))),
    );
    row(
        "CPU",
        format!(
            "{:.1} ms a round, {:.1} % of a core",
            figures.grown.cpu.as_secs_f64() * 1e3 / number(rounds.max(1)),
            figures.cores() * 100.0
        ),
    );
    row("peak RSS, open files", format!("{:.1} MiB, {}", mib(figures.peaks.rss), figures.peaks.files));
    let peaks = &figures.peaks;
    row(
        "idle",
        format!(
            "{:.2} transactions/s, {:.2} % of a core, RSS {:.1} MiB, {} open files",
            figures.idle_a_second(),
            figures.idle.cpu.as_secs_f64() / figures.idle_for.as_secs_f64() * 100.0,
            mib(peaks.rss_idle),
            peaks.files_idle
        ),
    );
    for Bound { what, figure, bound, unit } in figures.bounds() {
        let verdict = if figure <= bound { "met" } else { "NOT met" };
        row(&what, format!("{figure:.1} {unit} ≤ {bound} {unit}: {verdict}"));
    }
    for failure in figures.failures.iter().take(10) {
        let _ = writeln!(text, "FAILED: {failure}");
    }
    text
}

/// The largest first.
fn list(counts: &BTreeMap<String, f64>) -> String {
    let mut counts: Vec<_> = counts.iter().collect();
    counts.sort_by(|a, b| b.1.total_cmp(a.1));
    let shown: Vec<String> = counts.into_iter().map(|(name, count)| format!("{name} {count:.2}")).collect();
    shown.join(", ")
}

/// For programs.
pub(super) fn document(figures: &Figures) -> Value {
    let scope = &figures.scope;
    json!({
        "pipelines": scope.pipelines,
        "hosts": scope.hosts,
        "every_s": scope.every.as_secs_f64(),
        "for_s": scope.lasts.as_secs_f64(),
        "transfer_s": scope.transfer.as_secs_f64(),
        "replicas": scope.replicas,
        "rounds": figures.rounds(),
        "failed": figures.failures.len(),
        "missed": figures.missed,
        "verified": figures.verified,
        "rounds_a_second": number(figures.rounds()) / figures.lasted.as_secs_f64(),
        "overhead_ms": {
            "p50": ms(figures.overhead(0.5)), "p90": ms(figures.overhead(0.9)), "p99": ms(figures.overhead(0.99)),
            "most": ms(figures.overhead(1.0)),
        },
        "transactions_a_round": figures.transactions(),
        "transactions_a_round_by_postgres": figures.postgres_transactions(),
        "transactions_by_operation": figures.each(&figures.grown.transactions),
        "agent_calls_a_round": figures.a_round(sum(&figures.grown.agent_calls)),
        "agent_calls_by_method": figures.each(&figures.grown.agent_calls),
        "served_calls_by_method": figures.each(&figures.grown.served_calls),
        "s3_requests_a_round": figures.a_round(sum(&figures.grown.s3)),
        "s3_requests_by_operation": figures.each(&figures.grown.s3),
        "cpu_ms_a_round": figures.grown.cpu.as_secs_f64() * 1e3 / number(figures.rounds().max(1)),
        "cores": figures.cores(),
        "peak_rss_mib": mib(figures.peaks.rss),
        "open_files": figures.peaks.files,
        "idle": {
            "transactions_a_second": figures.idle_a_second(),
            "cores": figures.idle.cpu.as_secs_f64() / figures.idle_for.as_secs_f64(),
            "rss_mib": mib(figures.peaks.rss_idle),
            "open_files": figures.peaks.files_idle,
        },
        "bounds": figures.bounds().iter().map(|bound| json!({
            "what": bound.what, "figure": bound.figure, "bound": bound.bound, "met": bound.figure <= bound.bound,
        })).collect::<Vec<_>>(),
    })
}
