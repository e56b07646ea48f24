//! The embedded S3 server on its own, for trying clients on: `cargo run -p lockstep-devkit --example s3_server -- 9000 /tmp/s3`.

use lockstep_devkit::{S3Options, S3Server, S3ServerError};

#[tokio::main]
async fn main() -> Result<(), S3ServerError> {
    let mut arguments = std::env::args().skip(1);
    let mut options = S3Options { buckets: vec!["bucket".to_owned()], ..S3Options::default() };
    if let Some(port) = arguments.next().and_then(|port| port.parse().ok()) {
        options.listen.set_port(port);
    }
    options.root = arguments.next().map(Into::into);
    let credentials = options.credentials.clone();
    let server = S3Server::start(options).await?;
    println!("export AWS_ENDPOINT_URL={} AWS_REGION=us-east-1", server.endpoint());
    for (id, secret) in credentials {
        println!("export AWS_ACCESS_KEY_ID={id} AWS_SECRET_ACCESS_KEY={secret}");
    }
    println!("# the bucket is called bucket; ctrl-c stops the server");
    // Without a signal handler the default one ends us, which loses nothing.
    let _ = tokio::signal::ctrl_c().await;
    server.stop().await;
    Ok(())
}
