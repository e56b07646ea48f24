//! `lockstep-agent wait-ready`: for whatever starts the engine, an init container for one. Asks the agent beside it until it says that the engine may start.

use std::{process::ExitCode, time::Duration};

use clap::{Args, ValueEnum};
use lockstep_proto::v1::{self, agent_client::AgentClient};
use lockstep_protocol::unit;
use lockstep_rpc::{ChannelOptions, connect_lazy, with_deadline};

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(250);

/// Of one question.
const CALL: Duration = Duration::from_secs(5);

/// Which word is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum WaitedFor {
    /// The engine may start and write
    Active,
    /// Its disk holds what every host of a standby holds
    Standby,
    /// Either
    Any,
}

/// Waits until the agent says that the engine may start
///
/// That is: every host of the pipeline has ended the pull, none is left behind, and for a standby the activation is done. What was said is printed as one line of JSON:
/// checkpoint, step, fresh, role, round. An agent that is not up yet is waited for.
///
/// Exit status: 0 it may start, 1 not within --timeout, 2 for wrong usage.
#[derive(Args, Clone, Debug)]
pub struct WaitReady {
    /// Where the agent serves gRPC
    #[arg(long, env = "LOCKSTEP_AGENT", default_value = "http://127.0.0.1:7402", value_name = "URL")]
    pub agent: String,

    /// Which word to wait for
    #[arg(long, env = "LOCKSTEP_AGENT_WAIT_ROLE", value_enum, default_value_t = WaitedFor::Active)]
    pub role: WaitedFor,

    /// Give up after this long, for example 90s or 10m [default: never]
    #[arg(long, env = "LOCKSTEP_AGENT_WAIT_TIMEOUT", value_parser = timeout, value_name = "DURATION")]
    pub timeout: Option<Duration>,
}

fn timeout(text: &str) -> Result<Duration, String> {
    unit::duration("the value", text).map_err(|problem| problem.message)
}

impl WaitedFor {
    const fn is(self, role: v1::Role) -> bool {
        match self {
            Self::Active => matches!(role, v1::Role::Active),
            Self::Standby => matches!(role, v1::Role::Standby),
            Self::Any => true,
        }
    }
}

/// Runs to the end of the process. The caller has installed a rustls crypto provider.
pub fn run(args: &WaitReady) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(async {
        let channel = match connect_lazy(&args.agent, &ChannelOptions::default()) {
            Ok(channel) => channel,
            Err(error) => {
                eprintln!("error: --agent {}: {}", args.agent, error.message);
                return ExitCode::from(2);
            }
        };
        let mut last = "nobody was asked".to_owned();
        let waiting = until_ready(AgentClient::new(channel), args.role, &mut last);
        let outcome = match args.timeout {
            None => Some(waiting.await),
            Some(timeout) => tokio::time::timeout(timeout, waiting).await.ok(),
        };
        match outcome {
            Some(word) => {
                println!("{}", shown(&word));
                ExitCode::SUCCESS
            }
            None => {
                eprintln!("error: the engine must not start yet: {last}");
                ExitCode::FAILURE
            }
        }
    })
}

async fn until_ready<C>(mut agent: AgentClient<C>, role: WaitedFor, last: &mut String) -> v1::ReadyWord
where
    C: tonic::client::GrpcService<tonic::body::Body>,
    C::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    C::ResponseBody: tonic::codegen::Body<Data = bytes::Bytes> + Send + 'static,
    <C::ResponseBody as tonic::codegen::Body>::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
{
    loop {
        match agent.describe(with_deadline(v1::DescribeRequest {}, CALL)).await.map(tonic::Response::into_inner) {
            Ok(v1::DescribeResponse { ready: Some(word), .. }) if role.is(word.role()) => return word,
            Ok(v1::DescribeResponse { ready: Some(word), .. }) => {
                "the agent says ".clone_into(last);
                last.push_str(&shown(&word).to_string());
            }
            Ok(_) => "no pull of the pipeline has ended on every host; see `lockstep pipeline get`".clone_into(last),
            Err(status) => *last = format!("the agent does not answer: {}", status.message()),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn shown(word: &v1::ReadyWord) -> serde_json::Value {
    let given = |text: &String| (!text.is_empty()).then(|| text.clone());
    serde_json::json!({
        "checkpoint": given(&word.local_checkpoint),
        "step": (!word.fresh).then_some(word.step),
        "fresh": word.fresh,
        "role": if word.role() == v1::Role::Standby { "standby" } else { "active" },
        "round": given(&word.round),
    })
}
