//! What people read: a table for each data set and operation, then the targets, what is missing and what failed.

use std::fmt::Write as _;
use std::io::Write as _;

use comfy_table::{CellAlignment, Table, presets};

use crate::bench::Outcome;
use crate::json::mib;
use crate::plan::Tool;
use crate::sample::Medians;
use crate::targets::targets;

/// Columns of text; all others are numbers.
const TEXT_COLUMNS: usize = 1;

/// A reader that has gone, as `head` does, is no error.
pub(crate) fn print(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// All of it.
pub(crate) fn render(medians: &[Medians], outcome: &Outcome) -> String {
    let mut text = String::new();
    for group in medians.chunk_by(|a, b| heading(a) == heading(b)) {
        if let Some(first) = group.first() {
            let _ = writeln!(text, "\n{}\n{}", heading(first), figures(group));
        }
    }
    let targets = targets(medians);
    if !targets.is_empty() {
        let mut table = table(&["must reach", "figure", "bound", ""]);
        for target in &targets {
            let unit = target.unit;
            let verdict = if target.met() { "met" } else { "NOT met" };
            table.add_row([
                target.what.clone(),
                format!("{:.3} {unit}", target.figure),
                format!("≤ {} {unit}", target.bound),
                verdict.to_owned(),
            ]);
        }
        let _ = writeln!(text, "\n{}", lines(&table));
        // Exactly the default: nothing is computed from it.
        if outcome.scale != 1.0 {
            let share = outcome.scale;
            let _ =
                writeln!(text, "(the bounds are meant for the full data sets; scale {share} is another experiment)");
        }
    }
    if !outcome.missing.is_empty() {
        let names: Vec<&str> = outcome.missing.iter().map(|tool| tool.name()).collect();
        let _ = writeln!(text, "\nnot installed, so left out: {} (scripts/ensure-bench-peers.sh)", names.join(", "));
    }
    for failure in &outcome.failures {
        let _ = writeln!(text, "\nFAILED: {failure}");
    }
    text
}

fn heading(medians: &Medians) -> String {
    let case = &medians.case;
    let latency = match case.added_latency_ms {
        0 => String::new(),
        ms => format!(", {ms} ms added to each request"),
    };
    format!("{} of {}{latency} (medians)", case.operation.name(), case.data_set.name())
}

fn figures(group: &[Medians]) -> String {
    let mut table = table(&[
        "tool",
        "runs",
        "wall s",
        "least–most",
        "CPU s",
        "peak MiB",
        "requests",
        "PUTs",
        "MiB sent",
        "MiB received",
        "server CPU s",
        "ours ÷ this: wall",
        "CPU",
    ]);
    let ours = group.iter().find(|medians| medians.case.tool == Tool::Lockstep);
    for medians in group {
        let sample = &medians.sample;
        let ratio = |ours: Option<f64>, this: f64| match ours {
            Some(ours) if medians.case.tool != Tool::Lockstep && this > 0.0 => format!("{:.2}", ours / this),
            _ => String::new(),
        };
        let requests = match sample.coordinator_requests {
            0 => sample.requests.to_string(),
            coordinator => format!("{} + {coordinator}", sample.requests),
        };
        table.add_row([
            medians.case.tool.name().to_owned(),
            medians.runs.to_string(),
            format!("{:.3}", sample.cost.wall_s),
            format!("{:.2}–{:.2}", medians.wall_range.0, medians.wall_range.1),
            format!("{:.2}", sample.cost.cpu_s),
            format!("{:.0}", mib(sample.cost.peak_rss)),
            requests,
            sample.put_requests.to_string(),
            format!("{:.2}", mib(sample.bytes_sent)),
            format!("{:.2}", mib(sample.bytes_received)),
            format!("{:.2}", sample.server_cpu_s),
            ratio(ours.map(|ours| ours.sample.cost.wall_s), sample.cost.wall_s),
            ratio(ours.map(|ours| ours.sample.cost.cpu_s), sample.cost.cpu_s),
        ]);
    }
    lines(&table)
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for column in table.column_iter_mut().skip(TEXT_COLUMNS) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn lines(table: &Table) -> String {
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{DataSet, Operation};
    use crate::sample::Results;
    use crate::sample::tests::{case, sample};

    #[test]
    fn each_data_set_and_operation_has_a_table_with_ratios() {
        let mut outcome = Outcome {
            missing: vec![Tool::Aws],
            failures: vec!["it broke".to_owned()],
            scale: 0.5,
            ..Outcome::default()
        };
        let mut results = Results::default();
        results.add(case(DataSet::A, Operation::Push, Tool::Lockstep), sample(1.0));
        results.add(case(DataSet::A, Operation::Push, Tool::S5cmd), sample(4.0));
        results.add(case(DataSet::B, Operation::Push, Tool::Lockstep), sample(5.0));
        results.add(case(DataSet::B, Operation::Push, Tool::S5cmd), sample(4.0));
        results.add(case(DataSet::A, Operation::Pull, Tool::S5cmd), sample(4.0));
        outcome.results = results;
        let text = render(&outcome.results.medians(), &outcome);
        for wanted in [
            "push of A (medians)",
            "pull of A (medians)",
            "0.25",
            "5 + 4",
            "1.25",
            "NOT met",
            "scale 0.5 is",
            "left out: aws",
            "FAILED: it broke",
        ] {
            assert!(text.contains(wanted), "{wanted} is missing in {text}");
        }
    }
}
