//! Which files a folder holds.

use std::{ffi::OsStr, fs, path::Path};

use lockstep_protocol::{manifest::RelativePath, problem::Problem};

use super::{
    local_io::{Trouble, describe, local, unsupported},
    look::Look,
};

/// A regular file below a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FoundFile {
    /// From that folder.
    pub(crate) path: RelativePath,
    pub(crate) size: u64,
    pub(crate) look: Look,
}

/// Everything below `folder`, sorted by path. A symlink, FIFO, device or a name that is no UTF-8 is refused with its path; so is `folder` itself
/// if it is a symlink. Empty folders leave no trace.
pub(crate) fn regular_files(folder: &Path) -> Result<Vec<FoundFile>, Trouble> {
    walk(folder, &mut Err)
}

/// As [`regular_files`], but what can't be in a checkpoint is left out and what vanishes meanwhile is not missed: for sums, never for copies.
pub(crate) fn regular_files_so_far(folder: &Path) -> Result<Vec<FoundFile>, Trouble> {
    walk(folder, &mut |trouble| match trouble {
        Trouble::Problem(problem) if problem.reason != lockstep_protocol::problem::Reason::SourceUnsupported => {
            Err(Trouble::Problem(problem))
        }
        _ => Ok(()),
    })
}

fn walk(folder: &Path, judge: &mut dyn FnMut(Trouble) -> Result<(), Trouble>) -> Result<Vec<FoundFile>, Trouble> {
    let metadata = folder.symlink_metadata().map_err(|error| Trouble::of("stat", folder, &error))?;
    if !metadata.is_dir() {
        return Err(Trouble::Problem(unsupported(folder, describe(metadata.file_type()))));
    }
    let mut found = Vec::new();
    // Folders still to be read, relative to the first.
    let mut pending = vec![String::new()];
    while let Some(below) = pending.pop() {
        let at = folder.join(&below);
        let entries = match fs::read_dir(&at) {
            Ok(entries) => entries,
            Err(error) => {
                judge(Trouble::of("list", &at, &error))?;
                continue;
            }
        };
        for entry in entries {
            let entry = entry.map_err(|error| local("list", &at, &error))?;
            let full = entry.path();
            let metadata = match full.symlink_metadata() {
                Ok(metadata) => metadata,
                Err(error) => {
                    judge(Trouble::of("stat", &full, &error))?;
                    continue;
                }
            };
            match relative(&full, &below, &entry.file_name()) {
                Ok(path) if metadata.is_dir() => pending.push(path.into()),
                Ok(path) if metadata.is_file() => {
                    found.push(FoundFile { path, size: metadata.len(), look: Look::of(&metadata) })
                }
                Ok(_) => judge(Trouble::Problem(unsupported(&full, describe(metadata.file_type()))))?,
                Err(problem) => judge(Trouble::Problem(problem))?,
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn relative(full: &Path, below: &str, name: &OsStr) -> Result<RelativePath, Problem> {
    let name = name.to_str().ok_or_else(|| unsupported(full, "has a name that is no UTF-8"))?;
    let path = if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") };
    // Names come from a directory, so only the length of the whole path can be wrong.
    RelativePath::new(path).map_err(|problem| {
        let why = problem.metadata.get("why").map_or("is no valid path", String::as_str);
        unsupported(full, why)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use lockstep_protocol::problem::Reason;

    use super::*;

    fn refused(folder: &Path) -> Problem {
        match regular_files(folder) {
            Err(Trouble::Problem(problem)) => problem,
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn files_of_nested_folders_are_found_in_order_and_empty_folders_leave_no_trace() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/deep/empty")).unwrap();
        fs::write(dir.path().join("b"), "12").unwrap();
        fs::write(dir.path().join("a/deep/x"), "").unwrap();
        fs::write(dir.path().join("a/y"), "123").unwrap();
        let found: Vec<(String, u64)> =
            regular_files(dir.path()).unwrap().into_iter().map(|file| (file.path.into(), file.size)).collect();
        assert_eq!(found, [("a/deep/x".to_owned(), 0), ("a/y".to_owned(), 3), ("b".to_owned(), 2)]);
    }

    #[test]
    fn what_is_no_regular_file_is_refused_with_its_path() {
        for (name, make) in [
            (
                "link",
                Box::new(|path: &Path| std::os::unix::fs::symlink("/etc/passwd", path).unwrap()) as Box<dyn Fn(&Path)>,
            ),
            ("fifo", Box::new(|path: &Path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap())),
            ("socket", Box::new(|path: &Path| drop(std::os::unix::net::UnixListener::bind(path).unwrap()))),
        ] {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("sub")).unwrap();
            let odd = dir.path().join("sub").join(name);
            make(&odd);
            let problem = refused(dir.path());
            assert_eq!(problem.reason, Reason::SourceUnsupported);
            assert_eq!(problem.metadata["path"], odd.display().to_string());
            assert!(regular_files_so_far(dir.path()).unwrap().is_empty());
        }
    }

    #[test]
    fn a_name_that_is_no_utf8_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(OsStr::from_bytes(b"bad\xff")), "x").unwrap();
        let problem = refused(dir.path());
        assert_eq!(problem.reason, Reason::SourceUnsupported);
        assert!(problem.message.contains("no UTF-8"), "{problem}");
    }

    #[test]
    fn a_symlinked_folder_is_refused_and_a_missing_one_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("real")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("real"), dir.path().join("link")).unwrap();
        assert_eq!(refused(&dir.path().join("link")).reason, Reason::SourceUnsupported);
        assert!(matches!(regular_files(&dir.path().join("none")), Err(Trouble::Gone(_))));
    }
}
