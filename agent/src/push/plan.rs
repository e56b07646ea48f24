//! What is known of each file of a push, and which have to be read.

use lockstep_protocol::{
    digest::Digest,
    problem::{Problem, Reason},
};

use super::{
    base::Base,
    ledger::{Entry, Ledger},
    sending::Wanted,
};
use crate::{digests::Digests, store::HeldFile, work::Work};

/// Files by their place among the held ones.
#[derive(Debug)]
pub(super) struct Plan {
    /// None: to be read, or in the ledger.
    entries: Vec<Option<Entry>>,
}

impl Plan {
    pub(super) fn new(files: usize) -> Self {
        Self { entries: vec![None; files] }
    }

    /// Finds what need not be read, and returns the rest: empty files, those that an earlier attempt sent, and those that look like one whose digest is known
    /// and that the base has.
    pub(super) fn sort_out(
        &mut self,
        files: &[HeldFile],
        ledger: &Ledger,
        digests: &Digests,
        base: &Base,
        work: &Work,
    ) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        for (index, (file, entry)) in files.iter().zip(&mut self.entries).enumerate() {
            if entry.is_some() {
                continue;
            }
            let found = if file.size == 0 {
                Some(Entry { blake3: Digest::of(b""), head: None, content: None })
            } else {
                ledger.find(file)
            };
            let digest = file.look.as_ref().and_then(|look| digests.get(look));
            let found = found.or_else(|| {
                let blake3 = digest?;
                Some(Entry { blake3, head: base.head(file.size, blake3), content: Some(base.find(file.size, blake3)?) })
            });
            if found.is_some() {
                *entry = found;
                work.progress.done(file.size);
                work.progress.file_done();
            } else {
                wanted.push(Wanted { index, file: file.clone(), is_new: digest.is_some() });
            }
        }
        wanted
    }

    /// Reading showed that the base has these.
    pub(super) fn found(&mut self, known: Vec<(usize, Entry)>, files: &[HeldFile], work: &Work) {
        for (index, found) in known {
            if let (Some(entry), Some(file)) = (self.entries.get_mut(index), files.get(index)) {
                *entry = Some(found);
                work.progress.done(file.size);
                work.progress.file_done();
            }
        }
    }

    /// Every file's entry, once all that was wanted has been sent.
    pub(super) fn finish<'f>(
        self,
        files: &'f [HeldFile],
        ledger: &Ledger,
    ) -> Result<Vec<(&'f HeldFile, Entry)>, Problem> {
        files
            .iter()
            .zip(self.entries)
            .map(|(file, entry)| match entry.or_else(|| ledger.find(file)) {
                Some(entry) => Ok((file, entry)),
                None => Err(Problem::new(Reason::LocalIo, format!("{} was neither sent nor found", file.path))
                    .with("path", &file.path)),
            })
            .collect()
    }
}
