//! How far things are, on stderr: bars on a terminal, a line now and then else.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use lockstep_client::v1;

use crate::json::{participant_phase_name, phase_name};
use crate::output::{Progress, note};
use crate::{text, view};

/// Without a change of phase, lines are this far apart.
const LINE_PAUSE: Duration = Duration::from_secs(3);

/// The progress of one round: one bar for each host and one for all of them.
#[derive(Debug)]
pub(crate) struct RoundProgress {
    how: Progress,
    bars: MultiProgress,
    hosts: BTreeMap<u32, ProgressBar>,
    total: Option<ProgressBar>,
    phase: Option<v1::RoundPhase>,
    term: u64,
    line: Option<Instant>,
}

impl RoundProgress {
    pub(crate) fn new(how: Progress) -> Self {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        Self { how, bars, hosts: BTreeMap::new(), total: None, phase: None, term: 0, line: None }
    }

    pub(crate) fn update(&mut self, round: &v1::Round) {
        match self.how {
            Progress::Silent => {}
            Progress::Bars => self.draw(round),
            Progress::Lines => self.line(round),
        }
    }

    /// Leaves the bars as they are and the cursor below them.
    pub(crate) fn finish(&mut self) {
        for bar in self.hosts.values().chain(&self.total) {
            bar.abandon();
        }
    }

    fn draw(&mut self, round: &v1::Round) {
        for participant in &round.participants {
            let bar = self
                .hosts
                .entry(participant.host_idx)
                .or_insert_with(|| self.bars.add(bar(&format!("host {}", participant.host_idx))));
            set(bar, &participant.progress.unwrap_or_default());
            let mut message = participant_phase_name(participant.phase());
            if let Some(problem) = &participant.problem {
                message.push_str(&format!(", attempt {}: {}", participant.attempt, problem.reason));
            }
            bar.set_message(message);
        }
        let total = self.total.get_or_insert_with(|| self.bars.add(bar("all")));
        set(total, &total_of(round));
        total.set_message(phase_name(round.phase()));
    }

    fn line(&mut self, round: &v1::Round) {
        let changed = self.phase != Some(round.phase()) || self.term != round.term;
        if !changed && self.line.is_some_and(|last| last.elapsed() < LINE_PAUSE) {
            return;
        }
        let claimed = self.term > 0 && self.term != round.term;
        (self.phase, self.term, self.line) = (Some(round.phase()), round.term, Some(Instant::now()));
        let progress = total_of(round);
        let mut line = format!("{}: {}", view::what(round), phase_name(round.phase()));
        if claimed {
            line.push_str(&format!(", taken over (term {})", round.term));
        }
        if progress.bytes_total > 0 {
            line.push_str(&format!(", {}", amounts(&progress)));
        }
        for participant in &round.participants {
            if let Some(problem) = &participant.problem {
                line.push_str(&format!(
                    "\n  host {}, attempt {}: {}: {}",
                    participant.host_idx, participant.attempt, problem.reason, problem.message
                ));
            }
        }
        note(&line);
    }
}

/// One bar for something that is no round.
#[derive(Debug)]
pub(crate) struct Meter {
    how: Progress,
    label: &'static str,
    bar: Option<ProgressBar>,
    line: Option<Instant>,
}

impl Meter {
    pub(crate) fn new(how: Progress, label: &'static str) -> Self {
        Self { how, label, bar: None, line: None }
    }

    pub(crate) fn update(&mut self, progress: &v1::Progress) {
        match self.how {
            Progress::Silent => {}
            Progress::Bars => set(self.bar.get_or_insert_with(|| bar(self.label)), progress),
            Progress::Lines if self.line.is_some_and(|last| last.elapsed() < LINE_PAUSE) => {}
            Progress::Lines => {
                self.line = Some(Instant::now());
                note(&format!("{}: {}", self.label, amounts(progress)));
            }
        }
    }

    pub(crate) fn finish(self) {
        if let Some(bar) = self.bar {
            bar.abandon();
        }
    }
}

fn bar(label: &str) -> ProgressBar {
    let bar = ProgressBar::new(0).with_prefix(label.to_owned());
    // The template is a constant that the tests parse; without it the bar looks plain, and works.
    if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

const TEMPLATE: &str =
    "{prefix:>9} [{bar:30}] {binary_bytes:>10} of {binary_total_bytes:<10} {binary_bytes_per_sec:>12}  {msg}";

fn set(bar: &ProgressBar, progress: &v1::Progress) {
    bar.set_length(progress.bytes_total);
    bar.set_position(progress.bytes_done);
}

fn amounts(progress: &v1::Progress) -> String {
    let mut amounts = format!(
        "{} of {}, {} of {} files",
        text::size(progress.bytes_done),
        text::size(progress.bytes_total),
        progress.files_done,
        progress.files_total
    );
    if progress.bytes_per_second > 0 {
        amounts.push_str(&format!(", {}/s", text::size(progress.bytes_per_second)));
    }
    amounts
}

/// The round's own sum, or that of its hosts where the coordinator gives none.
pub(crate) fn total_of(round: &v1::Round) -> v1::Progress {
    round.progress.unwrap_or_else(|| {
        let mut sum = v1::Progress::default();
        for progress in round.participants.iter().filter_map(|participant| participant.progress.as_ref()) {
            sum.bytes_done += progress.bytes_done;
            sum.bytes_total += progress.bytes_total;
            sum.files_done += progress.files_done;
            sum.files_total += progress.files_total;
            sum.bytes_transferred += progress.bytes_transferred;
            sum.bytes_per_second += progress.bytes_per_second;
        }
        sum
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_of_the_bars_is_valid() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }

    #[test]
    fn the_sum_over_hosts_stands_in_for_a_total() {
        let host = |bytes_done| v1::Participant {
            progress: Some(v1::Progress { bytes_done, bytes_total: 10, ..Default::default() }),
            ..Default::default()
        };
        let round =
            v1::Round { participants: vec![host(3), host(4), v1::Participant::default()], ..Default::default() };
        let total = total_of(&round);
        assert_eq!((total.bytes_done, total.bytes_total), (7, 20));
    }
}
