//! What each command does.

pub(crate) mod audit;
pub(crate) mod checkpoint;
pub(crate) mod pipeline;
pub(crate) mod probe;
pub(crate) mod pull;
pub(crate) mod push;
pub(crate) mod round;
pub(crate) mod standby;
pub(crate) mod status;
pub(crate) mod take_over;

use std::time::Duration;

use lockstep_client::{LockstepClient, RetryPolicy};

use crate::actor;
use crate::args::Global;
use crate::failure::Failure;
use crate::output::Format;

/// What a command needs beside its own arguments.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) client: LockstepClient,
    pub(crate) format: Format,
}

impl Context {
    pub(crate) fn new(global: &Global) -> Result<Self, Failure> {
        // A person waits: a coordinator that is not there shows within a second, a hiccup passes unseen.
        let retry = RetryPolicy { tries: 4, budget: Duration::from_secs(10), ..RetryPolicy::default() };
        let client = LockstepClient::builder(&global.coordinator)
            .actor(global.actor.clone().unwrap_or_else(actor::default_name))
            .retry(retry)
            .connect()?;
        Ok(Self { client, format: global.output })
    }
}

/// `30s`, `10m`, `1h`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; write for example 30s, 10m or 1h"))
}
