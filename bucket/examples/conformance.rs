//! Runs the conformance suite and the probe against any location: `cargo run -p lockstep-bucket --example conformance s3://bucket/prefix?endpoint=...`.
//! Credentials come from the standard AWS chain. Writes below the prefix and leaves it there.

use lockstep_bucket::{AwsConnector, AwsOptions, Connector as _, StaticCredentials, conformance, probe};
use lockstep_protocol::{location::Location, problem::Problem};

#[tokio::main]
async fn main() -> Result<(), Problem> {
    let Some(text) = std::env::args().nth(1) else {
        eprintln!("usage: conformance 's3://bucket/prefix?endpoint=...'");
        std::process::exit(2);
    };
    let location: Location = text.parse()?;
    let connector = AwsConnector::from_env().await;
    let wrong = AwsConnector::with(AwsOptions {
        credentials: std::env::var("AWS_ACCESS_KEY_ID")
            .ok()
            .map(|access_key_id| StaticCredentials { access_key_id, secret_access_key: "a-wrong-secret".to_owned() }),
        ..AwsOptions::default()
    })
    .await;
    match probe(connector.connect(&location).await?.as_ref()).await {
        Ok(report) => report.checks.iter().for_each(|check| println!("probe: {}: {}", check.name, check.did)),
        Err(problem) => println!("probe: {problem}"),
    }
    let subject = conformance::Subject { connector: &connector, location: &location, wrong_secret: Some(&wrong) };
    let results = conformance::run(subject).await;
    for result in &results {
        match &result.failure {
            None => println!("ok      {}", result.name),
            Some(failure) => println!("FAILED  {}: {failure}", result.name),
        }
    }
    std::process::exit(i32::from(results.iter().any(|result| result.failure.is_some())));
}
