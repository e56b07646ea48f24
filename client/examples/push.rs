//! What a pipeline manager does to keep a pipeline's newest checkpoint safe: admit a push, follow it, judge the outcome.
//!
//! ```text
//! cargo run -p lockstep-client --example push -- http://127.0.0.1:7400 orders
//! ```

use std::process::ExitCode;

use futures::StreamExt as _;
use lockstep_client::{ClientError, LockstepClient, RetryPolicy, succeeded, v1};

#[tokio::main]
async fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (Some(address), Some(pipeline)) = (args.next(), args.next()) else {
        eprintln!("usage: push ADDRESS PIPELINE, for example: push http://127.0.0.1:7400 orders");
        return ExitCode::from(2);
    };
    match push(&address, &pipeline).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// True if the checkpoint is in the bucket.
async fn push(address: &str, pipeline: &str) -> Result<bool, ClientError> {
    let client = LockstepClient::builder(address)
        // Stands in the audit trail.
        .actor("orders-manager")
        // A periodic push may be under way: wait until it has ended instead of giving up.
        .retry(RetryPolicy { wait_for_round: true, ..RetryPolicy::default() })
        .connect()?;

    // Lost answers are no problem: all tries of this call carry one request id. A manager that may itself be restarted
    // between the call and its answer draws the id first, stores it with its own state, and passes it here.
    let request = v1::StartPushRequest { pipeline: pipeline.to_owned(), ..Default::default() };
    let admitted = client.start_push(request).await?;

    // Survives coordinator restarts. To only wait: `client.wait_round(&admitted.id).await?`.
    let mut watch = client.watch_round(&admitted.id);
    let mut last = admitted;
    while let Some(round) = watch.next().await {
        last = round?;
        let progress = last.progress.unwrap_or_default();
        println!("{:?}: {} of {} bytes", last.phase(), progress.bytes_done, progress.bytes_total);
    }
    if let Some(problem) = &last.problem {
        // `retryable` says whether the next push may work by itself or somebody has to act first.
        println!("{}: {} (retryable: {:?})", problem.reason, problem.message, problem.retryable());
    }
    Ok(succeeded(&last))
}
