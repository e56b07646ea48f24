//! What a part inherits from a full manifest: worked out by whoever writes it, put in its place by whoever reads it.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{DeltaManifest, FileEntry, ObjectEntry, PartManifest, RelativePath, check};
use crate::{digest::Digest, document::invalid, problem::Problem};

/// Names one full part manifest by its place and its bytes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inherited {
    /// Relative to the location's prefix; the key of a part manifest of the same slot.
    pub key: String,
    /// Its bytes.
    pub length: u64,
    /// Of its bytes.
    pub blake3: Digest,
}

/// How a part differs from the full manifest that its document names. Made by [`PartManifest::relate`] and [`DeltaManifest::resolve`] only; the part's `files` must
/// not be changed afterwards.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Delta {
    inherits: Inherited,
    /// Files that differ from the full manifest or are not in it, rising.
    listed: Vec<Listed>,
    /// Paths of the full manifest that the part doesn't have, sorted.
    removed: Vec<RelativePath>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Listed {
    /// Index into the part's files.
    file: usize,
    /// Whether the full manifest has another file at this path.
    replaces: bool,
}

/// Fewest files of a part that is written as a delta: below, a full manifest is as short.
pub const MIN_FILES: usize = 64;

/// Whether a part of `files` files is written as a delta of `entries` files and removed paths: at most a quarter, so that reading both documents costs
/// little more than reading a full one.
pub const fn worth_it(entries: usize, files: usize) -> bool {
    files >= MIN_FILES && entries <= files / 4
}

impl Delta {
    /// The full manifest.
    pub const fn inherits(&self) -> &Inherited {
        &self.inherits
    }

    /// How many files the document lists, and how many paths it removes.
    pub fn entries(&self) -> (usize, usize) {
        (self.listed.len(), self.removed.len())
    }

    pub(super) fn removed(&self) -> &[RelativePath] {
        &self.removed
    }

    /// The files of `part` that its document lists.
    pub(super) fn listed<'p>(&'p self, part: &'p PartManifest) -> impl Iterator<Item = &'p FileEntry> {
        self.listed.iter().filter_map(|listed| part.files.get(listed.file))
    }
}

impl PartManifest {
    /// Makes this part a delta of the full manifest that `base`, read at `document`, is or inherits, if that is [worth it](worth_it), and a
    /// full one otherwise. Sorts the files. Needs no more of the full manifest than `base` remembers of it.
    pub fn relate(&mut self, base: &Self, document: Inherited) {
        self.files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        self.delta = None;
        if self.slot != base.slot || self.round == base.round || !base.files.is_sorted_by(|a, b| a.path < b.path) {
            return;
        }
        let Some((listed, removed)) = differences(base, self) else { return };
        self.delta = Some(Delta { inherits: base.full_form(document), listed, removed });
    }
}

/// What `part` lists and removes relative to the full manifest that `base` is or inherits; none: too much.
fn differences(base: &PartManifest, part: &PartManifest) -> Option<(Vec<Listed>, Vec<RelativePath>)> {
    let same_object = same_objects(base, part);
    let mut base_listed = base.delta.iter().flat_map(|delta| &delta.listed).peekable();
    let mut base_removed = base.delta.iter().flat_map(|delta| &delta.removed).peekable();
    let mut old = base.files.iter().enumerate().peekable();
    let (mut listed, mut removed) = (Vec::new(), Vec::new());
    for (index, file) in part.files.iter().enumerate() {
        // Paths that the base has and this part has not.
        while let Some((gone, entry)) = old.next_if(|(_, entry)| entry.path < file.path) {
            match base_listed.next_if(|listed| listed.file == gone) {
                Some(Listed { replaces: false, .. }) => {}
                Some(_) | None => removed.push(entry.path.clone()),
            }
        }
        while let Some(path) = base_removed.next_if(|path| **path < file.path) {
            removed.push(path.clone());
        }
        if let Some((at, entry)) = old.next_if(|(_, entry)| entry.path == file.path) {
            match base_listed.next_if(|listed| listed.file == at) {
                Some(known) => listed.push(Listed { file: index, replaces: known.replaces }),
                None if same(entry, file, &same_object) => {}
                None => listed.push(Listed { file: index, replaces: true }),
            }
        } else {
            let replaces = base_removed.next_if(|path| **path == file.path).is_some();
            listed.push(Listed { file: index, replaces });
        }
        if !worth_it(listed.len() + removed.len(), part.files.len()) {
            return None;
        }
    }
    for (gone, entry) in old {
        match base_listed.next_if(|listed| listed.file == gone) {
            Some(Listed { replaces: false, .. }) => {}
            Some(_) | None => removed.push(entry.path.clone()),
        }
    }
    removed.extend(base_removed.cloned());
    // Two sorted runs that alternate.
    removed.sort_unstable();
    worth_it(listed.len() + removed.len(), part.files.len()).then_some((listed, removed))
}

/// Per object of `base` its index in `part`, if that has it.
fn same_objects(base: &PartManifest, part: &PartManifest) -> Vec<Option<u32>> {
    let index: HashMap<&str, (u32, u64)> =
        (0_u32..).zip(&part.objects).map(|(index, object)| (object.key.as_str(), (index, object.size))).collect();
    let find = |object: &ObjectEntry| {
        index.get(object.key.as_str()).filter(|(_, size)| *size == object.size).map(|(index, _)| *index)
    };
    base.objects.iter().map(find).collect()
}

fn same(old: &FileEntry, new: &FileEntry, same_object: &[Option<u32>]) -> bool {
    let object = match old.object {
        None => new.object.is_none(),
        Some(index) => new.object.is_some() && at(same_object, index).copied().flatten() == new.object,
    };
    object && (old.size, old.blake3, old.head, old.offset) == (new.size, new.blake3, new.head, new.offset)
}

fn at<T>(of: &[T], index: u32) -> Option<&T> {
    of.get(usize::try_from(index).ok()?)
}

impl DeltaManifest {
    /// The whole part. `full` is what [`Self::inherits`] names, its bytes compared with that by whoever read them.
    pub fn resolve(self, full: &PartManifest) -> Result<PartManifest, Problem> {
        let Self { key, mut part, inherits, removed } = self;
        let found = full.attempt_path().manifest().to_string();
        if found != inherits.key {
            return Err(invalid(&key, format!("inherits {}, not {found}", inherits.key)));
        }
        if full.delta.is_some() {
            return Err(invalid(&key, format!("inherits {found}, which inherits another one itself")));
        }
        if full.slot != part.slot {
            return Err(invalid(&key, format!("is of {}, but inherits {found} of {}", part.slot, full.slot)));
        }
        let own = std::mem::take(&mut part.files);
        let (sources, listed) = merge(&key, full, &own, &removed)?;
        let (objects, of_full, of_own) = combine(&key, full, &part.objects, &sources, &own)?;
        let moved = |file: FileEntry, to: &[Option<u32>]| FileEntry {
            object: file.object.and_then(|index| at(to, index).copied().flatten()),
            ..file
        };
        let mut own = own.into_iter();
        let mut files = Vec::with_capacity(sources.len());
        for source in sources {
            match source {
                Source::Full(index) => files.extend(full.files.get(index).cloned().map(|file| moved(file, &of_full))),
                Source::Own => files.extend(own.next().map(|file| moved(file, &of_own))),
            }
        }
        check::together(&key, &files)?;
        part.objects = objects;
        part.files = files;
        part.delta = Some(Delta { inherits, listed, removed });
        Ok(part)
    }
}

/// Where one file of the whole part comes from.
#[derive(Clone, Copy)]
enum Source {
    /// This one of the full manifest.
    Full(usize),
    /// The next one that the delta lists.
    Own,
}

/// The files of the whole part in order. All three lists are sorted and without doubles.
fn merge(
    key: &str,
    full: &PartManifest,
    own: &[FileEntry],
    removed: &[RelativePath],
) -> Result<(Vec<Source>, Vec<Listed>), Problem> {
    let not_there = |path: &RelativePath| {
        Err(invalid(key, format!("removes path {path:?}, which the manifest that it inherits does not have")))
    };
    let mut sources = Vec::with_capacity(full.files.len() + own.len());
    let mut listed = Vec::with_capacity(own.len());
    let mut own = own.iter().peekable();
    let mut removed = removed.iter().peekable();
    for (index, file) in full.files.iter().enumerate() {
        while own.next_if(|own| own.path < file.path).is_some() {
            listed.push(Listed { file: sources.len(), replaces: false });
            sources.push(Source::Own);
        }
        if let Some(path) = removed.next_if(|path| **path < file.path) {
            return not_there(path);
        }
        let gone = removed.next_if(|path| **path == file.path).is_some();
        let replaced = own.next_if(|own| own.path == file.path).is_some();
        match (gone, replaced) {
            (true, true) => return Err(invalid(key, format!("both lists and removes path {:?}", file.path))),
            (true, false) => {}
            (false, true) => {
                listed.push(Listed { file: sources.len(), replaces: true });
                sources.push(Source::Own);
            }
            (false, false) => sources.push(Source::Full(index)),
        }
    }
    if let Some(path) = removed.next() {
        return not_there(path);
    }
    for _ in own {
        listed.push(Listed { file: sources.len(), replaces: false });
        sources.push(Source::Own);
    }
    Ok((sources, listed))
}

/// The objects that the whole part uses, and where those of either list have gone.
type Combined = (Vec<ObjectEntry>, Vec<Option<u32>>, Vec<Option<u32>>);

fn combine(
    key: &str,
    full: &PartManifest,
    own_objects: &[ObjectEntry],
    sources: &[Source],
    own: &[FileEntry],
) -> Result<Combined, Problem> {
    let mut of_full = vec![false; full.objects.len()];
    let kept = sources.iter().filter_map(|source| match source {
        Source::Full(index) => full.files.get(*index)?.object,
        Source::Own => None,
    });
    mark(&mut of_full, kept);
    let mut of_own = vec![false; own_objects.len()];
    mark(&mut of_own, own.iter().filter_map(|file| file.object));

    let index: HashMap<&str, usize> =
        own_objects.iter().enumerate().map(|(index, object)| (object.key.as_str(), index)).collect();
    let mut objects = Vec::new();
    let mut full_to = vec![None; of_full.len()];
    let mut own_to = vec![None; of_own.len()];
    let next = |objects: &Vec<ObjectEntry>| {
        u32::try_from(objects.len()).map_err(|_| invalid(key, "uses more objects than 32 bits count"))
    };
    for ((object, used), to) in full.objects.iter().zip(of_full).zip(&mut full_to) {
        let twin = index.get(object.key.as_str()).copied();
        if let Some(other) = twin.and_then(|twin| own_objects.get(twin)).filter(|other| other.size != object.size) {
            return Err(invalid(
                key,
                format!(
                    "says object {} has {} bytes, the manifest that it inherits says {}",
                    object.key, other.size, object.size
                ),
            ));
        }
        let used_by_own = twin.is_some_and(|twin| of_own.get(twin).copied().unwrap_or(false));
        if !used && !used_by_own {
            continue;
        }
        *to = Some(next(&objects)?);
        if let Some(own_to) = twin.and_then(|twin| own_to.get_mut(twin)) {
            *own_to = *to;
        }
        objects.push(object.clone());
    }
    for ((object, used), to) in own_objects.iter().zip(of_own).zip(&mut own_to) {
        if used && to.is_none() {
            *to = Some(next(&objects)?);
            objects.push(object.clone());
        }
    }
    Ok((objects, full_to, own_to))
}

fn mark(used: &mut [bool], indices: impl Iterator<Item = u32>) {
    for index in indices {
        if let Some(used) = usize::try_from(index).ok().and_then(|index| used.get_mut(index)) {
            *used = true;
        }
    }
}
