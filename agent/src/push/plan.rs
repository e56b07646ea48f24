//! What is known of each file of a push, and which have to be read.

use std::collections::HashSet;

use lockstep_protocol::{
    digest::Digest,
    problem::{Problem, Reason},
};

use super::{
    base::Base,
    ledger::{Entry, Ledger},
    sending::Wanted,
};
use crate::{digests::Digests, progress::Progress, store::HeldFile};

/// Files by their place among the held ones.
#[derive(Debug)]
pub(super) struct Plan {
    /// None: to be read, or in the ledger.
    entries: Vec<Option<Entry>>,
    /// Whose progress was told.
    told: Vec<bool>,
}

impl Plan {
    pub(super) fn new(files: usize) -> Self {
        Self { entries: vec![None; files], told: vec![false; files] }
    }

    /// Finds what need not be read, and returns the rest: empty files, those that an earlier attempt sent, and those that look like one whose digest is known
    /// and that the base has.
    pub(super) fn sort_out(
        &mut self,
        files: &[HeldFile],
        ledger: &Ledger,
        digests: &Digests,
        base: &Base,
    ) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        for (index, (file, entry)) in files.iter().zip(&mut self.entries).enumerate() {
            if entry.is_some() {
                continue;
            }
            let digest = file.look.as_ref().and_then(|look| digests.get(look));
            *entry = match file.size {
                0 => Some(Entry { blake3: Digest::of(b""), head: None, content: None }),
                _ => ledger.find(index).or_else(|| base.find(file.size, digest?)),
            };
            if entry.is_none() {
                wanted.push(Wanted { index, size: file.size, is_new: digest.is_some() });
            }
        }
        wanted
    }

    /// Reading showed that the base has these.
    pub(super) fn found(&mut self, known: Vec<(usize, Entry)>) {
        for (index, found) in known {
            if let Some(entry) = self.entries.get_mut(index) {
                *entry = Some(found);
            }
        }
    }

    /// Objects of the base that are not worth keeping for the files found in them.
    pub(super) fn mostly_dead(&self, files: &[HeldFile], base: &Base) -> HashSet<String> {
        let used = files.iter().zip(&self.entries).filter_map(|(file, entry)| {
            let content = entry.as_ref()?.content.as_ref()?;
            Some((file.size, content))
        });
        base.mostly_dead(used)
    }

    /// Files in these objects are to be sent after all.
    pub(super) fn give_up(&mut self, files: &[HeldFile], objects: &HashSet<String>) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        for (index, (file, entry)) in files.iter().zip(&mut self.entries).enumerate() {
            if entry.take_if(|entry| entry.lies_in(objects)).is_some() {
                wanted.push(Wanted { index, size: file.size, is_new: true });
            }
        }
        wanted
    }

    /// Files that are dealt with count as done.
    pub(super) fn tell(&mut self, files: &[HeldFile], progress: &Progress) {
        for ((file, entry), told) in files.iter().zip(&self.entries).zip(&mut self.told) {
            if entry.is_some() && !std::mem::replace(told, true) {
                progress.done(file.size);
                progress.file_done();
            }
        }
    }

    /// Every file's entry, once all that was wanted has been sent.
    pub(super) fn finish(
        self,
        files: &[HeldFile],
        ledger: &Ledger,
    ) -> impl Iterator<Item = Result<(HeldFile, Entry), Problem>> {
        files.iter().zip(self.entries).enumerate().map(|(index, (file, entry))| {
            match entry.or_else(|| ledger.find(index)) {
                Some(entry) => Ok((file.clone(), entry)),
                None => Err(Problem::new(Reason::LocalIo, format!("{} was neither sent nor found", file.path))
                    .with("path", &file.path)),
            }
        })
    }
}
