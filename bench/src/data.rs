//! The data sets: content that neither compresses nor repeats, and the check that what arrived is the same.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use lockstep_devkit::dbsp::{DbspDirectory, DbspOptions};
use rand::rngs::SmallRng;
use rand::{RngCore as _, SeedableRng as _};

use crate::plan::DataSet;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Every tenth file is lost before a repair, and every hundredth changes in C.
const LOST: usize = 10;
const CHANGED: usize = 100;

/// How old files are when they are pushed first.
const AGE: Duration = Duration::from_secs(3600);

/// Where real storage directories are, best first: of the machine this was made on, and in the repository.
const REAL: [&str; 2] = ["/work/shared/data", concat!(env!("CARGO_MANIFEST_DIR"), "/../integration-tests/fixtures")];

/// Set by Ctrl-C: whoever writes or reads a lot on a thread of its own looks at it now and then.
static STOPPED: AtomicBool = AtomicBool::new(false);

/// Ends what is being generated or compared.
pub(crate) fn stop() {
    STOPPED.store(true, Ordering::Relaxed);
}

fn go_on() -> Result<()> {
    ensure!(!STOPPED.load(Ordering::Relaxed), "interrupted");
    Ok(())
}

/// What one file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) size: u64,
    digest: blake3::Hash,
}

/// Files below one folder, by relative path.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    pub(crate) root: PathBuf,
    pub(crate) files: BTreeMap<String, Content>,
}

impl Tree {
    pub(crate) fn bytes(&self) -> u64 {
        self.files.values().map(|content| content.size).sum()
    }

    /// The files that are lost before a repair.
    pub(crate) fn lost(&self) -> impl Iterator<Item = (&String, &Content)> {
        // One of few is lost too.
        self.files.iter().skip(LOST.min(self.files.len()) / 2).step_by(LOST)
    }

    /// Reads what is below `folder`, and insists that it is exactly this.
    pub(crate) fn check(&self, folder: &Path, ignored: &[&str]) -> Result<()> {
        let mut found = read_tree(folder)?;
        found.files.retain(|path, _| !ignored.contains(&path.as_str()));
        if found.files == self.files {
            return Ok(());
        }
        let missing = self.files.keys().find(|path| !found.files.contains_key(*path));
        let more = found.files.keys().find(|path| !self.files.contains_key(*path));
        let differs = self.files.iter().find(|(path, content)| found.files.get(*path).is_some_and(|is| is != *content));
        bail!(
            "{} is not what was pushed from {}: {} files instead of {}, first missing {missing:?}, first unexpected {more:?}, first different {:?}",
            folder.display(),
            self.root.display(),
            found.files.len(),
            self.files.len(),
            differs.map(|(path, _)| path),
        )
    }

    /// The same files at another place, by hard links.
    pub(crate) fn link(&self, to: &Path) -> Result<()> {
        for path in self.files.keys() {
            let place = to.join(path);
            if let Some(folder) = place.parent() {
                fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
            }
            fs::hard_link(self.root.join(path), &place).with_context(|| place.display().to_string())?;
        }
        Ok(())
    }
}

/// A data set, and for C what it was before.
#[derive(Debug, Clone)]
pub(crate) struct Data {
    pub(crate) tree: Tree,
    /// C: what is pushed before it is measured; [`Data::tree`] is linked to it but for what changed.
    pub(crate) before: Option<Tree>,
}

impl Data {
    /// Marks the changed files as changed just now, later than any push that has ended.
    pub(crate) fn touch_changed(&self) -> Result<()> {
        let paths = self.changed().into_iter().map(|path| self.tree.root.join(path));
        touch(paths, SystemTime::now() + Duration::from_secs(1))
    }

    /// Paths of the files that are not what they were before.
    fn changed(&self) -> Vec<&String> {
        let Some(before) = &self.before else { return self.tree.files.keys().collect() };
        self.tree
            .files
            .iter()
            .filter(|(path, content)| before.files.get(*path) != Some(content))
            .map(|(path, _)| path)
            .collect()
    }

    /// Bytes that a push can't do without.
    pub(crate) fn bytes_changed(&self) -> u64 {
        self.changed().into_iter().filter_map(|path| self.tree.files.get(path)).map(|content| content.size).sum()
    }
}

/// Bytes of one copy of a data set, about.
pub(crate) fn size(data_set: DataSet, scale: f64) -> u64 {
    let (number, each) = shape(data_set, scale);
    number * each
}

/// Number and size of the files.
fn shape(data_set: DataSet, scale: f64) -> (u64, u64) {
    let scaled = |bytes| scaled(bytes, scale);
    match data_set {
        // Few but large: below a file of 1 MiB it would be another data set.
        DataSet::A => {
            let total = scaled(2 * GIB).max(4 * MIB);
            let number = (total / (32 * MIB)).clamp(4, 64);
            (number, total / number)
        }
        DataSet::B | DataSet::C => ((scaled(4_000 * 64 * KIB) / (64 * KIB)).max(100), 64 * KIB),
        DataSet::D => (1, scaled(4 * GIB).max(32 * MIB)),
        DataSet::F => ((scaled(2_000 * 128 * KIB) / (128 * KIB)).max(40), 128 * KIB),
    }
}

/// Rounded down.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "sizes of data sets are not negative and far below 2^52"
)]
fn scaled(bytes: u64, scale: f64) -> u64 {
    (bytes as f64 * scale) as u64
}

/// Makes a data set below `folder`. Takes a while and a processor.
pub(crate) fn generate(data_set: DataSet, scale: f64, folder: &Path) -> Result<Data> {
    let (number, each) = shape(data_set, scale);
    let mut random = SmallRng::seed_from_u64(u64::from(data_set.name().as_bytes()[0]));
    let tree = match data_set {
        DataSet::A | DataSet::B | DataSet::D => write_files(&folder.join("data"), number, each, &mut random)?,
        DataSet::C => {
            let before = write_files(&folder.join("before"), number, each, &mut random)?;
            let tree = change(&before, &folder.join("data"), &mut random)?;
            age(&tree)?;
            return Ok(Data { tree, before: Some(before) });
        }
        DataSet::F => {
            let root = folder.join("data");
            copy_real(&root)?;
            generate_dbsp(&root, number)?;
            read_tree(&root)?
        }
    };
    age(&tree)?;
    Ok(Data { tree, before: None })
}

/// Tools that compare times would otherwise take a file that was made in the second of its push for a changed one.
fn age(tree: &Tree) -> Result<()> {
    touch(tree.files.keys().map(|path| tree.root.join(path)), SystemTime::now() - AGE)
}

/// Gives files this time of modification.
fn touch(paths: impl IntoIterator<Item = PathBuf>, time: SystemTime) -> Result<()> {
    for path in paths {
        let file = File::options().write(true).open(&path).with_context(|| path.display().to_string())?;
        file.set_modified(time).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn write_files(root: &Path, number: u64, each: u64, random: &mut SmallRng) -> Result<Tree> {
    let mut files = BTreeMap::new();
    for index in 0..number {
        // Two levels, as real stores have, of a hundred files each.
        let path = format!("{:02}/{index:05}.bin", index / 100);
        let content = write_file(&root.join(&path), each, random)?;
        files.insert(path, content);
    }
    Ok(Tree { root: root.to_owned(), files })
}

fn write_file(path: &Path, size: u64, random: &mut SmallRng) -> Result<Content> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let mut file = File::create_new(path).with_context(|| path.display().to_string())?;
    let mut hasher = blake3::Hasher::new();
    let mut block = vec![0; usize::try_from(size.min(MIB))?];
    let mut left = size;
    while left > 0 {
        go_on()?;
        let length = usize::try_from(left.min(MIB))?;
        random.fill_bytes(&mut block[..length]);
        hasher.update(&block[..length]);
        file.write_all(&block[..length]).with_context(|| path.display().to_string())?;
        left -= length as u64;
    }
    Ok(Content { size, digest: hasher.finalize() })
}

/// Links everything but every hundredth file, which gets other content of the same size.
fn change(before: &Tree, root: &Path, random: &mut SmallRng) -> Result<Tree> {
    before.link(root)?;
    let mut files = before.files.clone();
    for (path, content) in files.iter_mut().skip(CHANGED / 2).step_by(CHANGED) {
        let place = root.join(path);
        fs::remove_file(&place).with_context(|| place.display().to_string())?;
        *content = write_file(&place, content.size, random)?;
    }
    Ok(Tree { root: root.to_owned(), files })
}

fn copy_real(root: &Path) -> Result<()> {
    let Some(real) = REAL.iter().map(Path::new).find(|path| path.is_dir()) else { return Ok(()) };
    for (path, _) in list(real)? {
        let place = root.join("real").join(&path);
        if let Some(folder) = place.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::copy(real.join(&path), &place).with_context(|| place.display().to_string())?;
    }
    Ok(())
}

/// Half of the batches as small as most are, half as large as the largest that were seen.
fn generate_dbsp(root: &Path, number: u64) -> Result<()> {
    let half = usize::try_from(number / 2)?;
    for (seed, name, batch_bytes) in [(1, "small", 512..=20_000), (2, "large", 100_000..=380_000)] {
        go_on()?;
        let options = DbspOptions { seed, batch_bytes, ..DbspOptions::default() };
        let mut directory = DbspDirectory::create(root.join(name), options)?;
        directory.checkpoint(1, half / 2, 0)?;
        directory.checkpoint(2, half - half / 2, half / 10)?;
    }
    Ok(())
}

/// Paths relative to `root`, and sizes.
fn list(root: &Path) -> Result<Vec<(String, u64)>> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let at = root.join(&folder);
        for entry in fs::read_dir(&at).with_context(|| at.display().to_string())? {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                folders.push(path);
            } else {
                let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
                found.push((text.to_owned(), metadata.size()));
            }
        }
    }
    Ok(found)
}

fn read_tree(root: &Path) -> Result<Tree> {
    let mut files = BTreeMap::new();
    let mut block = vec![0; 1 << 20];
    for (path, size) in list(root)? {
        let place = root.join(&path);
        let mut file = File::open(&place).with_context(|| place.display().to_string())?;
        let mut hasher = blake3::Hasher::new();
        loop {
            go_on()?;
            match file.read(&mut block).with_context(|| place.display().to_string())? {
                0 => break,
                length => hasher.update(&block[..length]),
            };
        }
        files.insert(path, Content { size, digest: hasher.finalize() });
    }
    Ok(Tree { root: root.to_owned(), files })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_is_lost_and_a_hundredth_changes() {
        let folder = tempfile::tempdir().unwrap();
        let data = generate(DataSet::C, 0.05, folder.path()).unwrap();
        assert_eq!(data.tree.files.len(), 200);
        assert_eq!(data.changed().len(), 2);
        assert_eq!(data.bytes_changed(), 2 * 64 * KIB);
        assert_eq!(data.tree.lost().count(), 20);
        data.tree.check(&folder.path().join("data"), &[]).unwrap();
    }

    #[test]
    fn what_differs_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let data = generate(DataSet::B, 0.0, folder.path()).unwrap();
        let root = folder.path().join("data");
        let other = root.join("00/00003.bin");
        let bytes = fs::read(&other).unwrap();
        let mut flipped = bytes.clone();
        flipped[77] ^= 1;
        fs::write(&other, &flipped).unwrap();
        assert!(data.tree.check(&root, &[]).unwrap_err().to_string().contains("00003.bin"));
        fs::write(&other, &bytes).unwrap();
        fs::write(root.join("more"), "x").unwrap();
        assert!(data.tree.check(&root, &[]).unwrap_err().to_string().contains("more"));
        data.tree.check(&root, &["more"]).unwrap();
        fs::remove_file(&other).unwrap();
        assert!(data.tree.check(&root, &["more"]).is_err());
    }

    #[test]
    fn one_file_of_few_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let data = generate(DataSet::A, 0.0, folder.path()).unwrap();
        assert_eq!((data.tree.files.len(), data.tree.bytes()), (4, 4 * MIB));
        assert_eq!(data.tree.lost().count(), 1);
    }

    #[test]
    fn at_full_size_they_are_what_the_design_says() {
        assert_eq!(shape(DataSet::A, 1.0), (64, 32 * MIB));
        assert_eq!(shape(DataSet::B, 1.0), (4_000, 64 * KIB));
        assert_eq!(shape(DataSet::C, 1.0), (4_000, 64 * KIB));
        assert_eq!(shape(DataSet::D, 1.0), (1, 4 * GIB));
    }

    #[test]
    fn f_has_batches_and_catalogs() {
        let folder = tempfile::tempdir().unwrap();
        let data = generate(DataSet::F, 0.0, folder.path()).unwrap();
        let ends = |end: &str| data.tree.files.keys().filter(|path| path.ends_with(end)).count();
        assert!(ends(".feldera") >= 36, "{}", ends(".feldera"));
        assert!(ends("checkpoints.feldera") >= 2);
    }
}
