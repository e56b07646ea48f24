//! The least of HTTP: one GET, the whole answer as text.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Head and body of the answer.
pub async fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap_or_else(|error| panic!("{address}: {error}"));
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("the request is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("the answer is text");
    answer
}
