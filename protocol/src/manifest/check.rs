//! What is refused in a list of objects or files.

use std::collections::HashSet;

use super::{FileEntry, HEAD_BYTES, ObjectEntry};
use crate::{document::invalid, key::Key, problem::Problem};

/// Each a data key, each once.
pub(super) fn objects(key: &str, objects: &[ObjectEntry]) -> Result<(), Problem> {
    let mut seen = HashSet::with_capacity(objects.len());
    for object in objects {
        if !matches!(Key::parse(&object.key), Some(Key::Data(..))) {
            return Err(invalid(key, format!("uses object {:?}, which is no data object's key", object.key)));
        }
        if !seen.insert(object.key.as_str()) {
            return Err(invalid(key, format!("lists object {:?} twice", object.key)));
        }
    }
    Ok(())
}

/// Each file by itself: where it lies, and its head.
pub(super) fn each_file(key: &str, objects: &[ObjectEntry], files: &[FileEntry]) -> Result<(), Problem> {
    for file in files {
        let path = &file.path;
        if file.length != file.size {
            return Err(invalid(key, format!("path {path:?} has size {} but length {}", file.size, file.length)));
        }
        if file.head.is_some() && file.size <= HEAD_BYTES {
            return Err(invalid(
                key,
                format!(
                    "path {path:?} of {} bytes has a head, which only files of more than {HEAD_BYTES} have",
                    file.size
                ),
            ));
        }
        match file.object {
            None if file.size == 0 => {}
            None => return Err(invalid(key, format!("path {path:?} of {} bytes names no object", file.size))),
            Some(_) if file.size == 0 => {
                return Err(invalid(key, format!("path {path:?} is empty but names an object")));
            }
            Some(index) => {
                let object = usize::try_from(index)
                    .ok()
                    .and_then(|index| objects.get(index))
                    .ok_or_else(|| invalid(key, format!("path {path:?} names object {index} of {}", objects.len())))?;
                if file.offset.checked_add(file.length).is_none_or(|end| end > object.size) {
                    return Err(invalid(
                        key,
                        format!(
                            "path {path:?} reaches to {}+{} in object {:?} of {} bytes",
                            file.offset, file.length, object.key, object.size
                        ),
                    ));
                }
            }
        }
    }
    Ok(())
}

/// Puts files in order and refuses a path that is there twice.
pub(super) fn sort(key: &str, files: &mut [FileEntry]) -> Result<(), Problem> {
    if !files.is_sorted_by(|a, b| a.path < b.path) {
        files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    }
    match files.windows(2).find(|pair| pair[0].path == pair[1].path) {
        None => Ok(()),
        Some(pair) => Err(invalid(key, format!("lists path {:?} twice", pair[0].path))),
    }
}

/// All files of a part together, sorted: their sum, and no file where another one's folder is.
pub(super) fn together(key: &str, files: &[FileEntry]) -> Result<(), Problem> {
    let mut total = 0_u64;
    let mut before = "";
    for file in files {
        total = total
            .checked_add(file.size)
            .filter(|&sum| sum <= crate::id::MAX_NUMBER)
            .ok_or_else(|| invalid(key, "has more bytes in all than a signed 64-bit number holds"))?;
        let path = file.path.as_str();
        // Folders that the file before lies in too have been looked for already.
        let shared = path.bytes().zip(before.bytes()).take_while(|(a, b)| a == b).count();
        let mut new = file.path.ancestors().filter(|folder| folder.len() >= shared);
        if let Some(folder) = new.find(|folder| files.binary_search_by(|other| other.path.as_str().cmp(folder)).is_ok())
        {
            return Err(invalid(key, format!("path {folder:?} is a file and a folder at once")));
        }
        before = path;
    }
    Ok(())
}
