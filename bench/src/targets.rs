//! The project's targets ("must reach"), as far as this run says something about them.

use crate::json::mib;
use crate::plan::{DataSet, Operation, Tool};
use crate::sample::{Medians, Sample};

/// One row: a figure and its bound.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Target {
    pub(crate) what: String,
    pub(crate) figure: f64,
    pub(crate) bound: f64,
    pub(crate) unit: &'static str,
}

impl Target {
    pub(crate) fn met(&self) -> bool {
        self.figure <= self.bound
    }
}

/// Rows that can be computed.
pub(crate) fn targets(medians: &[Medians]) -> Vec<Target> {
    let figures = Figures(medians);
    let mut rows = Vec::new();
    let mut row = |what: &str, figure: Option<f64>, bound: f64, unit: &'static str| {
        rows.extend(figure.map(|figure| Target { what: what.to_owned(), figure, bound, unit }));
    };
    use DataSet::{A, B, C};
    use Operation::{Nothing, Pull, Push, Repair};
    let wall = |sample: &Sample| sample.cost.wall_s;
    let cpu = |sample: &Sample| sample.cost.cpu_s;

    row("push A, wall against the best peer", figures.against_best(A, Push), 0.7, "×");
    row("push A, client CPU against s5cmd", figures.ratio(A, Push, 0, Tool::S5cmd, cpu), 0.55, "×");
    row("push B, wall against s5cmd", figures.ratio(B, Push, 0, Tool::S5cmd, wall), 0.4, "×");
    row("push B, PUT requests", figures.ours(B, Push, |sample| count(sample.put_requests)), 20.0, "");
    row("push B +30 ms, wall against s5cmd", figures.ratio(B, Push, 30, Tool::S5cmd, wall), 0.4, "×");
    row("push B +30 ms, wall against s5cmd-16", figures.ratio(B, Push, 30, Tool::S5cmd16, wall), 0.2, "×");
    row("nothing changed, B, agent's requests", figures.ours(B, Nothing, |sample| count(sample.requests)), 5.0, "");
    // 6 + 2n, with one host.
    let coordinators = figures.ours(B, Nothing, |sample| count(sample.coordinator_requests));
    row("nothing changed, B, coordinator's requests", coordinators, 8.0, "");
    row("nothing changed, B, wall against s5cmd", figures.ratio(B, Nothing, 0, Tool::S5cmd, wall), 0.1, "×");
    let sent = figures.ours(C, Push, |sample| count(sample.bytes_sent) / count(sample.bytes_needed));
    row("C, bytes sent / bytes changed", sent, 1.05, "");
    row("pull A, wall against s5cmd", figures.ratio(A, Pull, 0, Tool::S5cmd, wall), 1.0, "×");
    row("pull A, client CPU against s5cmd", figures.ratio(A, Pull, 0, Tool::S5cmd, cpu), 1.3, "×");
    row("pull B, wall against s5cmd", figures.ratio(B, Pull, 0, Tool::S5cmd, wall), 0.4, "×");
    for set in DataSet::ALL {
        let fetched = figures.ours(set, Repair, |sample| count(sample.bytes_received) / count(sample.bytes_needed));
        let what = format!("pull after losing 10% of the files, {}, bytes fetched / missing", set.name());
        row(&what, fetched, 1.05, "");
    }
    let of_ours = medians.iter().filter(|medians| medians.case.tool == Tool::Lockstep);
    let peak = of_ours.map(|medians| mib(medians.sample.cost.peak_rss)).reduce(f64::max);
    row("agent's peak RSS, largest of all operations", peak, 128.0, "MiB");
    rows
}

#[expect(clippy::cast_precision_loss, reason = "exact below 2^52")]
fn count(number: u64) -> f64 {
    number as f64
}

struct Figures<'a>(&'a [Medians]);

impl Figures<'_> {
    fn find(&self, data_set: DataSet, operation: Operation, added_latency_ms: u64, tool: Tool) -> Option<&Sample> {
        let case = crate::plan::Case { data_set, operation, added_latency_ms, tool };
        self.0.iter().find(|medians| medians.case == case).map(|medians| &medians.sample)
    }

    fn ours(&self, data_set: DataSet, operation: Operation, figure: impl Fn(&Sample) -> f64) -> Option<f64> {
        self.find(data_set, operation, 0, Tool::Lockstep).map(figure)
    }

    fn ratio(
        &self,
        data_set: DataSet,
        operation: Operation,
        latency: u64,
        peer: Tool,
        figure: impl Fn(&Sample) -> f64,
    ) -> Option<f64> {
        let ours = self.find(data_set, operation, latency, Tool::Lockstep)?;
        Some(figure(ours) / figure(self.find(data_set, operation, latency, peer)?))
    }

    fn against_best(&self, data_set: DataSet, operation: Operation) -> Option<f64> {
        let peers = Tool::ALL.into_iter().filter(|tool| tool.is_peer());
        let walls = peers.filter_map(|tool| Some(self.find(data_set, operation, 0, tool)?.cost.wall_s));
        let best = walls.reduce(f64::min)?;
        self.ours(data_set, operation, |sample| sample.cost.wall_s / best)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Results;
    use crate::sample::tests::{case, sample};

    fn rows(results: &Results) -> Vec<(String, f64, bool)> {
        targets(&results.medians())
            .into_iter()
            .map(|target| (target.what.clone(), target.figure, target.met()))
            .collect()
    }

    #[test]
    fn the_best_peer_counts_and_the_floor_does_not() {
        let mut results = Results::default();
        for (tool, wall) in [(Tool::Lockstep, 3.0), (Tool::S5cmd, 6.0), (Tool::Rclone, 4.0), (Tool::Curl, 1.0)] {
            results.add(case(DataSet::A, Operation::Push, tool), sample(wall));
        }
        let rows = rows(&results);
        assert_eq!(rows[0], ("push A, wall against the best peer".to_owned(), 0.75, false));
        assert_eq!(rows[1], ("push A, client CPU against s5cmd".to_owned(), 0.5, true));
    }

    #[test]
    fn rows_without_their_figures_are_left_out() {
        assert!(targets(&[]).is_empty());
        let mut results = Results::default();
        results.add(case(DataSet::C, Operation::Push, Tool::Lockstep), sample(1.0));
        let names: Vec<String> = rows(&results).into_iter().map(|row| row.0).collect();
        assert_eq!(names, ["C, bytes sent / bytes changed", "agent's peak RSS, largest of all operations"]);
    }

    #[test]
    fn a_bound_itself_is_met() {
        let target = Target { what: String::new(), figure: 1.05, bound: 1.05, unit: "" };
        assert!(target.met());
        assert!(!Target { figure: 1.06, ..target }.met());
    }
}
