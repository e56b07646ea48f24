//! The demo's voice: numbered chapters, one line for each thing that happened, with the time at which it did.

use std::time::Instant;

use lockstep_client::v1;

use crate::output::print;
use crate::progress::total_of;
use crate::text;

/// Progress of a transfer is told each time this much more of it is done.
const STRIDE: u64 = 25;

#[derive(Debug)]
pub(crate) struct Narrator {
    began: Instant,
    chapter: u32,
    /// Percent up to which progress was told.
    told: u64,
}

impl Narrator {
    pub(crate) fn begin() -> Self {
        print("lockstep demo: push, lose every disk, pull, compare; all of it on this machine\n");
        Self { began: Instant::now(), chapter: 0, told: 0 }
    }

    pub(crate) fn chapter(&mut self, title: &str) {
        self.chapter += 1;
        print(&format!("{}. {title}", self.chapter));
    }

    pub(crate) fn say(&self, line: &str) {
        print(&format!("  {:4.1} s  {line}", self.began.elapsed().as_secs_f64()));
    }

    /// A line that belongs to the one before.
    pub(crate) fn more(&self, line: &str) {
        print(&format!("          {line}"));
    }

    /// Begins to tell the progress of another round.
    pub(crate) fn reset_progress(&mut self) {
        self.told = 0;
    }

    /// Says how far a transfer is, at every quarter of it.
    pub(crate) fn progress(&mut self, round: &v1::Round) {
        let total = total_of(round);
        if round.phase() != v1::RoundPhase::Transferring || total.bytes_total == 0 {
            return;
        }
        let percent = total.bytes_done.min(total.bytes_total) * 100 / total.bytes_total;
        if percent < self.told + STRIDE || percent >= 100 {
            return;
        }
        self.told = percent / STRIDE * STRIDE;
        self.say(&format!("{} {}, {}", bar(percent), amount(&total), hosts(round)));
    }

    pub(crate) fn close(&self, line: &str) {
        print(&format!("\n{line}, after {:.1} s", self.began.elapsed().as_secs_f64()));
        print("next: `lockstep dev` keeps such a set up running; `lockstep --help` has the commands");
    }
}

fn bar(percent: u64) -> String {
    // At most 20, by construction.
    let full = (percent / 5).min(20) as usize;
    format!("[{}{}] {percent:3}%", "=".repeat(full), " ".repeat(20 - full))
}

fn amount(progress: &v1::Progress) -> String {
    format!("{} of {}", text::size(progress.bytes_done), text::size(progress.bytes_total))
}

fn hosts(round: &v1::Round) -> String {
    let hosts = round.participants.iter().map(|participant| {
        let progress = participant.progress.unwrap_or_default();
        let percent = (progress.bytes_done * 100).checked_div(progress.bytes_total).unwrap_or_default();
        format!("host {} {percent}%", participant.host_idx)
    });
    hosts.collect::<Vec<_>>().join(", ")
}
