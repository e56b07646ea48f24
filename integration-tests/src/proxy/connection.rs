//! One connection: two directions, each of which waits for good weather before it forwards.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};
use tokio_util::sync::CancellationToken;

use super::{Shared, Snare, TrapAction, Weather, lock, reset};

/// How a connection ends before its two sides do.
enum End {
    /// Both sides are reset.
    Reset,
    /// The client is reset, the server reads to the end.
    ResetClient,
}

/// Carries bytes until both sides have ended, one of them breaks, or `cut`.
pub(super) async fn carry(shared: &Shared, client: TcpStream, cut: CancellationToken) {
    let upstream = *lock(&shared.upstream);
    let server = match TcpStream::connect(upstream).await {
        Ok(server) => server,
        Err(_) => return reset(&client),
    };
    for side in [&client, &server] {
        let _ = side.set_nodelay(true);
    }
    let (mut client, mut server) = (client.into_split(), server.into_split());
    let losing = AtomicBool::new(false);
    let ended = tokio::select! {
        () = cut.cancelled() => Err(End::Reset),
        ended = async {
            tokio::try_join!(
                requests(shared, &mut client.0, &mut server.1, &losing),
                answers(shared, &mut server.0, &mut client.1, &losing)
            )
        } => ended,
    };
    match ended {
        Ok(_) => {}
        Err(End::Reset) => {
            sever(client);
            sever(server);
        }
        Err(End::ResetClient) => sever(client),
    }
}

/// Whole again first: the drop of a half that writes would end the connection in an orderly way.
fn sever((reads, writes): (OwnedReadHalf, OwnedWriteHalf)) {
    if let Ok(stream) = reads.reunite(writes) {
        reset(&stream);
    }
}

async fn fair(shared: &Shared, holds: fn(&Weather) -> bool) {
    let mut weather = shared.weather.subscribe();
    let delay = match weather.wait_for(|weather| !holds(weather)).await {
        Ok(weather) => weather.delay,
        Err(_) => return,
    };
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
}

const PIECE: usize = 64 << 10;

async fn requests(
    shared: &Shared,
    client: &mut OwnedReadHalf,
    server: &mut OwnedWriteHalf,
    losing: &AtomicBool,
) -> Result<(), End> {
    let (mut piece, mut snare) = (vec![0; PIECE], Snare::default());
    loop {
        let length = client.read(&mut piece).await.map_err(|_| End::Reset)?;
        if length == 0 {
            return server.shutdown().await.map_err(|_| End::Reset);
        }
        let action = shared.traps.check(&mut snare, &piece[..length]);
        match action {
            Some(TrapAction::LoseRequest) => return Err(End::Reset),
            Some(TrapAction::LoseAnswer) => losing.store(true, Ordering::Release),
            Some(TrapAction::CutAfterRequest) | None => {}
        }
        fair(shared, Weather::holds_requests).await;
        server.write_all(&piece[..length]).await.map_err(|_| End::Reset)?;
        if action == Some(TrapAction::CutAfterRequest) {
            return Err(End::ResetClient);
        }
    }
}

async fn answers(
    shared: &Shared,
    server: &mut OwnedReadHalf,
    client: &mut OwnedWriteHalf,
    losing: &AtomicBool,
) -> Result<(), End> {
    let mut piece = vec![0; PIECE];
    loop {
        let length = server.read(&mut piece).await.map_err(|_| End::Reset)?;
        if length == 0 {
            return client.shutdown().await.map_err(|_| End::Reset);
        }
        if losing.load(Ordering::Acquire) {
            return Err(End::Reset);
        }
        fair(shared, Weather::holds_answers).await;
        client.write_all(&piece[..length]).await.map_err(|_| End::Reset)?;
    }
}
