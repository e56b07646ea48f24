//! What commands put on stdout: one table, or exactly one JSON document.

use std::io::{IsTerminal as _, Write as _};

use clap::ValueEnum;
use serde_json::Value;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// One document on stdout and nothing else there.
    Json,
}

impl Format {
    /// Prints a command's result; only the asked-for form of it is made.
    pub(crate) fn give(self, document: impl FnOnce() -> Value, table: impl FnOnce() -> String) {
        match self {
            Self::Table => print(&table()),
            // A Value always has a text; the alternate form is indented.
            Self::Json => print(&format!("{:#}", document())),
        }
    }

    /// Whether progress may be drawn, and how: it goes to stderr, as bars on a terminal, as lines else. Programs that
    /// read documents get neither unless a person is watching.
    pub(crate) fn progress(self) -> Progress {
        match (std::io::stderr().is_terminal(), self) {
            (true, _) => Progress::Bars,
            (false, Self::Table) => Progress::Lines,
            (false, Self::Json) => Progress::Silent,
        }
    }
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    Bars,
    Lines,
    Silent,
}

/// A line (or several) on stdout. A reader that has gone, as `head` does, is no error.
pub(crate) fn print(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// A line on stderr, for people.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
