//! Who the server runs as, and how it is started so that it dies with us.

use std::ffi::OsString;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{Gid, Uid, User};

use super::PostgresError;
use super::process::StopMode;

/// `None` runs as ourselves; as root there is somebody else, because postgres refuses root.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    other: Option<(String, Uid, Gid)>,
    setpriv: Option<PathBuf>,
}

impl Account {
    pub(crate) fn choose() -> Result<Self, PostgresError> {
        let setpriv = ["/usr/bin/setpriv", "/bin/setpriv"].map(PathBuf::from).into_iter().find(|path| path.is_file());
        if !nix::unistd::geteuid().is_root() {
            return Ok(Self { other: None, setpriv });
        }
        let user = ["postgres", "nobody"].into_iter().find_map(|name| User::from_name(name).ok().flatten());
        let user = user.ok_or(PostgresError::NoAccount)?;
        Ok(Self { other: Some((user.name, user.uid, user.gid)), setpriv })
    }

    /// A program run to its end, with an environment that leaks nothing of ours.
    pub(crate) fn tokio_command(&self, program: &Path, args: Vec<OsString>) -> tokio::process::Command {
        let mut command = Command::new(program);
        command.args(args);
        self.drop_privileges(&mut command);
        let mut command = tokio::process::Command::from(clean(command));
        command.kill_on_drop(true);
        command
    }

    /// The server itself. `setpriv` sets the signal that the kernel sends when the thread that started it ends; without
    /// `setpriv` (`unsafe` would be the other way) a killed parent leaves the server behind.
    pub(crate) fn dying_command(&self, program: &Path, args: Vec<OsString>, orphaned: StopMode) -> Command {
        let Some(setpriv) = &self.setpriv else {
            let mut command = Command::new(program);
            command.args(args);
            self.drop_privileges(&mut command);
            return clean(command);
        };
        let mut command = Command::new(setpriv);
        command.arg("--pdeathsig").arg(orphaned.signal_name());
        if let Some((_, uid, gid)) = &self.other {
            command.arg("--reuid").arg(uid.to_string()).arg("--regid").arg(gid.to_string()).arg("--clear-groups");
        }
        command.arg("--").arg(program).args(args);
        clean(command)
    }

    fn drop_privileges(&self, command: &mut Command) {
        if let Some((_, uid, gid)) = &self.other {
            // As root, std also clears the supplementary groups before it switches.
            command.uid(uid.as_raw()).gid(gid.as_raw());
        }
    }

    /// Makes `directory` (mode 0700, ours to give) and its missing parents (0755), gives it to the account and checks
    /// that the account can get there.
    pub(crate) fn own_directory(&self, directory: &Path) -> Result<(), PostgresError> {
        if let Some(parent) = directory.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(PostgresError::io(parent))?;
        }
        match std::fs::DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(PostgresError::io(directory)(error));
            }
            _ => {}
        }
        self.give(directory)?;
        self.check_reach(directory)
    }

    pub(crate) fn give(&self, path: &Path) -> Result<(), PostgresError> {
        let Some((_, uid, gid)) = &self.other else { return Ok(()) };
        std::os::unix::fs::chown(path, Some(uid.as_raw()), Some(gid.as_raw())).map_err(PostgresError::io(path))
    }

    /// Every parent must be traversable: postgres itself would only say "permission denied" about the last one.
    pub(crate) fn check_reach(&self, directory: &Path) -> Result<(), PostgresError> {
        let real = directory.canonicalize().map_err(PostgresError::io(directory))?;
        match real.parent() {
            Some(parent) => self.check_traverse(parent, directory),
            None => Ok(()),
        }
    }

    /// `within` (an absolute path without symlinks) and all above it let the account through.
    pub(crate) fn check_traverse(&self, within: &Path, directory: &Path) -> Result<(), PostgresError> {
        let Some((user, uid, gid)) = &self.other else { return Ok(()) };
        for parent in within.ancestors() {
            let meta = parent.metadata().map_err(PostgresError::io(parent))?;
            let bit = match () {
                () if meta.uid() == uid.as_raw() => 0o100,
                () if meta.gid() == gid.as_raw() => 0o010,
                () => 0o001,
            };
            if meta.mode() & bit == 0 {
                return Err(PostgresError::NotTraversable {
                    user: user.clone(),
                    parent: parent.to_path_buf(),
                    mode: meta.mode() & 0o7777,
                    data_dir: directory.to_path_buf(),
                });
            }
        }
        Ok(())
    }
}

/// PGDATA, PGPORT, locale and the caller's secrets stay out; the directory must be one the account can stand in. In a
/// process group of its own, so that ctrl-C in a terminal reaches us first and not the server of those still finishing.
fn clean(mut command: Command) -> Command {
    command.env_clear().env("LC_ALL", "C").env("TZ", "UTC").env("PATH", "/usr/bin:/bin").current_dir("/");
    command.process_group(0).stdin(std::process::Stdio::null());
    command
}
