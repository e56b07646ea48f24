//! moto's server: a mock of S3 in Python, kept in memory. Takes any credentials.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use super::{Account, NotInstalled, child::Child, client, in_path, is_program, scratch::Scratch};
use crate::wait;

/// Where moto's program is.
#[derive(Clone, Debug)]
pub struct Installed(PathBuf);

/// Python runs it before moto. Moto answers in threads, and looks whether a key is there before it writes it: of eight creates that race, two have won on a busy machine. So its requests are let in
/// one after the other.
const ONE_AT_A_TIME: &str = "\
import threading
import werkzeug.serving

run, turn = werkzeug.serving.run_simple, threading.Lock()

def run_in_turn(host, port, application, **options):
    def in_turn(environ, start_response):
        with turn:
            return list(application(environ, start_response))
    run(host, port, in_turn, **options)

werkzeug.serving.run_simple = run_in_turn
";

/// A running server. Dropping it kills it.
#[derive(Debug)]
pub struct Moto {
    child: Child,
    endpoint: String,
    _scratch: Scratch,
}

impl Moto {
    /// Where `scripts/ensure-conformance-servers.sh` puts it, else in PATH.
    pub fn find() -> Result<Installed, NotInstalled> {
        const PROGRAM: &str = "moto_server";
        let tools = env::var_os("LOCKSTEP_TOOLS").map(PathBuf::from);
        let tools = tools.or_else(|| env::home_dir().map(|home| home.join(".cache/lockstep")));
        let ours = tools.map(|tools| tools.join("moto/bin").join(PROGRAM)).filter(|file| is_program(file));
        let found = ours.or_else(|| in_path(PROGRAM));
        found.map(Installed).ok_or(NotInstalled { server: "moto", program: PROGRAM.to_owned() })
    }

    /// Starts it and makes the bucket.
    pub async fn start(installed: &Installed, account: Account<'_>, bucket: &str) -> Self {
        let scratch = Scratch::new("moto");
        fs::write(scratch.path().join("sitecustomize.py"), ONE_AT_A_TIME).expect("the scratch folder can be written");
        let path = format!("PYTHONPATH={}", scratch.path().display());
        let program = installed.0.display().to_string();
        let args = [path.as_str(), &program, "-H", "127.0.0.1", "-p", "0"];
        let child = Child::start("moto", Path::new("env"), &args, scratch.path());
        let endpoint = wait::until("moto says where it listens", || {
            child.must_run();
            let found = child.log().split_once("Running on ").and_then(|(_, rest)| {
                let end = rest.find(|c: char| c.is_whitespace() || c.is_control())?;
                Some(rest[..end].to_owned())
            });
            async move { found.ok_or("nothing yet") }
        })
        .await;
        let client = client(&endpoint, account);
        wait::until("moto makes a bucket", || {
            child.must_run();
            let request = client.create_bucket().bucket(bucket).send();
            async move { request.await.map_err(|error| format!("{error:?}")) }
        })
        .await;
        Self { child, endpoint, _scratch: scratch }
    }

    /// Where it listens.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The end of what it said.
    pub fn log(&self) -> String {
        self.child.log()
    }
}
