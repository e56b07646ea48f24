//! One host's disk: what its engine would see, and what lies staged.

/// See the module's documentation. Steps name checkpoints.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Disk {
    visible: u8,
    /// (round, step)
    pub(super) staged: Option<(u8, u8)>,
}

impl Disk {
    pub(super) fn with(steps: &[u8]) -> Self {
        Self { visible: steps.iter().fold(0, |visible, step| visible | 1 << step), staged: None }
    }

    pub(super) const fn has(self, step: u8) -> bool {
        self.visible & 1 << step != 0
    }

    pub(super) const fn is_empty(self) -> bool {
        self.visible == 0
    }

    pub(super) const fn has_only(self, step: u8) -> bool {
        self.visible == 1 << step
    }

    /// The rename.
    pub(super) const fn show(&mut self, step: u8) {
        self.visible |= 1 << step;
    }

    pub(super) const fn keep_only(&mut self, step: u8) {
        self.visible = 1 << step;
    }

    /// For a trace.
    pub(super) fn line(self) -> String {
        let steps: Vec<String> = (0..8).filter(|&step| self.has(step)).map(|step| step.to_string()).collect();
        let staged = self.staged.map_or_else(String::new, |(round, step)| format!(", staged {step} of round {round}"));
        format!("disk [{}]{staged}", steps.join(" "))
    }
}
