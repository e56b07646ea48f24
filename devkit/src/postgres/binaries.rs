//! Finding `initdb` and `postgres`.
//!
//! Debian keeps both out of PATH (`/usr/lib/postgresql/<major>/bin`), and what is in PATH may be a symlink to a directory
//! with only some of the programs: so symlinks are resolved, and a directory counts only if it has both.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::PostgresError;

const PROGRAMS: [&str; 2] = ["initdb", "postgres"];

/// Where to look, in this order.
#[derive(Debug, Clone)]
pub struct BinarySearch {
    /// `LOCKSTEP_PG_BIN`: if set, the only place that counts.
    pub explicit: Option<PathBuf>,
    /// `PATH`.
    pub path: Option<OsString>,
    /// Where the distribution keeps versions: `<here>/<major>/bin`, of which the newest is taken.
    pub versions: PathBuf,
}

impl BinarySearch {
    /// The environment's `LOCKSTEP_PG_BIN` and `PATH`, and Debian's `/usr/lib/postgresql`.
    pub fn from_environment() -> Self {
        Self {
            explicit: std::env::var_os("LOCKSTEP_PG_BIN").filter(|value| !value.is_empty()).map(PathBuf::from),
            path: std::env::var_os("PATH"),
            versions: PathBuf::from("/usr/lib/postgresql"),
        }
    }

    /// The programs, or an error that says where it looked and what to install.
    pub fn find(&self) -> Result<Binaries, PostgresError> {
        if let Some(explicit) = &self.explicit {
            return match PROGRAMS.into_iter().find(|program| !explicit.join(program).is_file()) {
                None => Ok(Binaries::within(explicit)),
                Some(missing) => Err(PostgresError::IncompleteBinaries { path: explicit.clone(), missing }),
            };
        }
        let in_path = self.path.iter().flat_map(std::env::split_paths).filter_map(|directory| {
            let program = std::fs::canonicalize(directory.join("postgres")).ok()?;
            program.parent().map(Path::to_path_buf)
        });
        in_path
            .chain(self.installed_versions())
            .find(|directory| PROGRAMS.iter().all(|program| directory.join(program).is_file()))
            .map(|directory| Binaries::within(&directory))
            .ok_or_else(|| PostgresError::NoBinaries {
                looked: format!("LOCKSTEP_PG_BIN, PATH and {}/*/bin", self.versions.display()),
            })
    }

    fn installed_versions(&self) -> Vec<PathBuf> {
        let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir(&self.versions)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
            .collect();
        versions.sort_by(|a, b| b.cmp(a));
        versions.into_iter().map(|(_, directory)| directory).collect()
    }
}

/// The two programs a cluster needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    /// Creates a cluster.
    pub initdb: PathBuf,
    /// Runs one.
    pub postgres: PathBuf,
}

impl Binaries {
    fn within(directory: &Path) -> Self {
        Self { initdb: directory.join("initdb"), postgres: directory.join("postgres") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn install(directory: &Path, programs: &[&str]) {
        std::fs::create_dir_all(directory).unwrap();
        for program in programs {
            std::fs::write(directory.join(program), "").unwrap();
        }
    }

    fn nothing(root: &Path) -> BinarySearch {
        BinarySearch { explicit: None, path: None, versions: root.join("versions") }
    }

    #[test]
    fn missing_binaries_say_what_to_install() {
        let root = tempfile::tempdir().unwrap();
        let error = nothing(root.path()).find().unwrap_err().to_string();
        assert!(error.contains("apt-get install postgresql"), "{error}");
        assert!(error.contains("LOCKSTEP_PG_BIN"), "{error}");
    }

    #[test]
    fn newest_version_is_compared_as_a_number_and_must_be_complete() {
        let root = tempfile::tempdir().unwrap();
        let search = nothing(root.path());
        install(&search.versions.join("9/bin"), &PROGRAMS);
        install(&search.versions.join("15/bin"), &PROGRAMS);
        install(&search.versions.join("17/bin"), &["postgres"]);
        assert_eq!(search.find().unwrap().initdb, search.versions.join("15/bin/initdb"));
    }

    #[test]
    fn symlink_in_path_leads_to_the_real_directory() {
        let root = tempfile::tempdir().unwrap();
        let real = root.path().canonicalize().unwrap().join("real");
        let linked = root.path().join("linked");
        install(&real, &PROGRAMS);
        std::fs::create_dir(&linked).unwrap();
        std::os::unix::fs::symlink(real.join("postgres"), linked.join("postgres")).unwrap();
        let search = BinarySearch { path: Some(linked.into_os_string()), ..nothing(root.path()) };
        assert_eq!(search.find().unwrap(), Binaries::within(&real));
    }

    #[test]
    fn explicit_directory_without_initdb_is_an_error_even_if_another_would_do() {
        let root = tempfile::tempdir().unwrap();
        let explicit = root.path().join("explicit");
        install(&explicit, &["postgres"]);
        let search = BinarySearch { explicit: Some(explicit), ..nothing(root.path()) };
        install(&search.versions.join("15/bin"), &PROGRAMS);
        let error = search.find().unwrap_err();
        assert!(matches!(error, PostgresError::IncompleteBinaries { missing: "initdb", .. }), "{error}");
    }
}
