use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{Instant, timeout},
};

use super::*;

/// Long enough for a loopback connection, short enough for what must not come.
const MOMENT: Duration = Duration::from_millis(150);

/// A server that answers each line with itself, and what it has read.
struct Echo {
    address: SocketAddr,
    read: Arc<Mutex<Vec<u8>>>,
}

impl Echo {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let read = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&read);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let all = Arc::clone(&all);
                tokio::spawn(async move {
                    let mut piece = [0; 1024];
                    while let Ok(length @ 1..) = stream.read(&mut piece).await {
                        lock(&all).extend_from_slice(&piece[..length]);
                        if stream.write_all(&piece[..length]).await.is_err() {
                            break;
                        }
                    }
                });
            }
        });
        Self { address, read }
    }

    async fn has_read(&self, text: &str) {
        crate::wait::until("the server has read it", || async {
            let read = String::from_utf8_lossy(&lock(&self.read)).into_owned();
            if read == text { Ok(()) } else { Err(format!("it has read {read:?}")) }
        })
        .await;
    }
}

async fn proxied() -> (Echo, FaultProxy, TcpStream) {
    let echo = Echo::start().await;
    let proxy = FaultProxy::start(echo.address, 1).await.unwrap();
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(ask(&mut stream, "hello").await.unwrap(), "hello");
    (echo, proxy, stream)
}

async fn ask(stream: &mut TcpStream, text: &str) -> io::Result<String> {
    stream.write_all(text.as_bytes()).await?;
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).await?;
    Ok(String::from_utf8(answer).unwrap())
}

fn is_reset(result: &io::Result<String>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
}

#[tokio::test]
async fn good_weather_forwards_both_ways_and_an_orderly_end_stays_one() {
    let (echo, proxy, mut stream) = proxied().await;
    assert_eq!((proxy.open(), proxy.accepted()), (1, 1));
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    assert_eq!(stream.read_to_end(&mut rest).await.unwrap(), 0, "an end, no reset");
    echo.has_read("hello").await;
    crate::wait::until("it is off the list", || async { if proxy.open() == 0 { Ok(()) } else { Err("still open") } })
        .await;
}

#[tokio::test]
async fn open_connections_are_cut_and_new_ones_are_not() {
    let (_echo, proxy, mut stream) = proxied().await;
    assert_eq!(proxy.cut(), 1);
    assert!(is_reset(&ask(&mut stream, "again").await));
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(ask(&mut stream, "again").await.unwrap(), "again");
}

#[tokio::test]
async fn new_connections_are_refused_and_open_ones_live() {
    let (_echo, proxy, mut stream) = proxied().await;
    proxy.change(|weather| weather.refuses = true);
    let refused = match TcpStream::connect(proxy.address()).await {
        Ok(mut new) => ask(&mut new, "new").await.is_err(),
        Err(_) => true,
    };
    assert!(refused);
    assert_eq!(ask(&mut stream, "old").await.unwrap(), "old");
    proxy.clear();
    let mut new = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(ask(&mut new, "new").await.unwrap(), "new");
}

#[tokio::test]
async fn a_stall_holds_one_direction_or_both_and_loses_nothing() {
    for (stalls, heard) in [(Stall::Requests, "hello"), (Stall::Answers, "hellomore"), (Stall::Everything, "hello")] {
        let (echo, proxy, mut stream) = proxied().await;
        proxy.change(|weather| weather.stalls = stalls);
        assert!(timeout(MOMENT, ask(&mut stream, "more")).await.is_err(), "{stalls:?}: no answer comes");
        echo.has_read(heard).await;
        proxy.clear();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"more", "{stalls:?}: it comes when the stall is over");
    }
}

#[tokio::test]
async fn a_stalled_connection_can_be_cut() {
    let (_echo, proxy, mut stream) = proxied().await;
    proxy.change(|weather| weather.stalls = Stall::Everything);
    assert!(timeout(MOMENT, ask(&mut stream, "more")).await.is_err());
    proxy.cut();
    assert!(is_reset(&ask(&mut stream, "again").await));
}

#[tokio::test]
async fn a_delay_is_waited_for_in_each_direction() {
    let (_echo, proxy, mut stream) = proxied().await;
    proxy.change(|weather| weather.delay = Duration::from_millis(60));
    let began = Instant::now();
    ask(&mut stream, "slow").await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(120), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_trap_loses_the_request_cuts_behind_it_or_loses_the_answer() {
    for (action, read) in [
        (TrapAction::LoseRequest, "hello"),
        (TrapAction::CutAfterRequest, "helloCOMMIT"),
        (TrapAction::LoseAnswer, "helloCOMMIT"),
    ] {
        let (echo, proxy, mut stream) = proxied().await;
        let trap = proxy.set(Trap::new("COMMIT", action));
        let lost = timeout(crate::wait::PATIENCE, ask(&mut stream, "COMMIT")).await.unwrap();
        assert!(is_reset(&lost), "{action:?}: {lost:?}");
        proxy.springs(trap).await;
        assert_eq!(proxy.sprung(trap), 1);
        echo.has_read(read).await;
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(ask(&mut stream, "COMMIT").await.unwrap(), "COMMIT", "{action:?}: once");
    }
}

#[tokio::test]
async fn a_trap_finds_bytes_that_come_in_pieces_and_spares_the_first() {
    let (_echo, proxy, mut stream) = proxied().await;
    let trap = proxy.set(Trap::new("COMMIT", TrapAction::LoseAnswer).skip(1));
    for piece in ["a COM", "MIT b ", "COM", "M"] {
        assert_eq!(ask(&mut stream, piece).await.unwrap(), piece);
    }
    assert_eq!(proxy.sprung(trap), 0);
    assert!(is_reset(&ask(&mut stream, "COMMIT").await));
    assert_eq!(proxy.sprung(trap), 1);
}

#[tokio::test]
async fn the_same_seed_cuts_the_same_connections() {
    let echo = Echo::start().await;
    let mut cut = Vec::new();
    for _ in 0..2 {
        let proxy = FaultProxy::start(echo.address, 7).await.unwrap();
        let mut streams = Vec::new();
        for _ in 0..12 {
            // One after the other, so that they are numbered alike.
            let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
            ask(&mut stream, "x").await.unwrap();
            streams.push(stream);
        }
        let number = proxy.cut_some(0.5);
        let mut lost = Vec::new();
        for stream in &mut streams {
            lost.push(is_reset(&ask(stream, "y").await));
        }
        assert_eq!(lost.iter().filter(|lost| **lost).count(), number);
        assert!((1..12).contains(&number));
        cut.push(lost);
    }
    assert_eq!(cut[0], cut[1]);
}

#[tokio::test]
async fn connections_lead_where_the_server_is_now() {
    let (_echo, proxy, _stream) = proxied().await;
    let moved = Echo::start().await;
    proxy.set_upstream(moved.address);
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(ask(&mut stream, "there").await.unwrap(), "there");
    moved.has_read("there").await;
}
