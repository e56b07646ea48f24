//! A line to a server that can go dead without a word: a cable that was pulled, a firewall that forgot, a machine that stopped. Connections stay open and
//! nothing comes through.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Ends with the value.
#[derive(Debug)]
pub struct Line {
    address: SocketAddr,
    /// How often it went dead; a connection is dead once it is of an earlier time.
    times: watch::Sender<u64>,
    _stop: DropGuard,
}

impl Line {
    /// A line to a server on this machine.
    ///
    /// # Errors
    ///
    /// No port is free.
    pub async fn to(server: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let times = watch::Sender::new(0);
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(accept(listener, server, times.clone(), stop.clone())));
        Ok(Self { address, times, _stop: stop.drop_guard() })
    }

    /// Where to call instead of the server.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on nothing comes through the connections that are open. New ones work.
    pub fn go_dead(&self) {
        self.times.send_modify(|times| *times += 1);
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, times: watch::Sender<u64>, stop: CancellationToken) {
    while let Ok((caller, _)) = listener.accept().await {
        // A server that is gone shows as a connection that is closed at once.
        let Ok(server) = TcpStream::connect(server).await else { continue };
        let now = *times.borrow();
        let ((from_caller, to_caller), (from_server, to_server)) = (caller.into_split(), server.into_split());
        tokio::spawn(stop.clone().run_until_cancelled_owned(forward(from_caller, to_server, times.subscribe(), now)));
        tokio::spawn(stop.clone().run_until_cancelled_owned(forward(from_server, to_caller, times.subscribe(), now)));
    }
}

async fn forward(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    times: watch::Receiver<u64>,
    mine: u64,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let Ok(read) = from.read(&mut buffer).await else { return };
        if *times.borrow() != mine {
            // Not closed: whoever holds the other end must find out by itself.
            return std::future::pending().await;
        }
        if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
