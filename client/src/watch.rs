//! A watch of one round that survives what happens to the coordinator it talks to.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use futures::Stream;
use futures::stream::{BoxStream, StreamExt as _};
use lockstep_proto::v1::{Round, WatchRoundRequest};
use lockstep_rpc::Retryable;
use tonic::Streaming;

use crate::client::LockstepClient;
use crate::error::ClientError;
use crate::phase::is_terminal;

/// The round now, then each change, until it is terminal.
///
/// A watch whose connection breaks, whose coordinator goes away or whose stream ends early is opened again, and again
/// while the coordinator can't be reached, for as long as [`crate::Builder::reconnect_for`] says. What it has shown is
/// not shown again, and an older state than the one shown (from a replica that is behind) is left out. So what comes is
/// in order and without repetition, but not every change need be in it: states in between may be missing after a break.
///
/// After an error or a terminal round the stream has ended.
pub struct RoundWatch {
    rounds: BoxStream<'static, Result<Round, ClientError>>,
}

impl fmt::Debug for RoundWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RoundWatch").finish_non_exhaustive()
    }
}

impl Stream for RoundWatch {
    type Item = Result<Round, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.rounds.poll_next_unpin(context)
    }
}

impl RoundWatch {
    pub(crate) fn new(client: LockstepClient, round: String) -> Self {
        let watch = Watch { client, round, stream: None, shown: None, silent: None, ended: false };
        let rounds = futures::stream::unfold(watch, |mut watch| async move {
            let item = watch.next().await?;
            Some((item, watch))
        });
        Self { rounds: rounds.boxed() }
    }
}

struct Watch {
    client: LockstepClient,
    round: String,
    stream: Option<Streaming<Round>>,
    /// The last one given out.
    shown: Option<Round>,
    /// Since when, and over how many tries, nothing was heard.
    silent: Option<(Instant, u32)>,
    ended: bool,
}

impl Watch {
    async fn next(&mut self) -> Option<Result<Round, ClientError>> {
        while !self.ended {
            let received = match self.receive().await {
                Ok(round) => round,
                Err(error) => {
                    self.stream = None;
                    match self.pause_after(error).await {
                        Ok(()) => continue,
                        Err(error) => {
                            self.ended = true;
                            return Some(Err(error));
                        }
                    }
                }
            };
            let Some(round) = received else {
                // The server ended the stream without a terminal round: it is going away.
                self.stream = None;
                let cause = "the watch ended before the round did".to_owned();
                let error = ClientError::Unreachable { address: self.client.address().to_owned(), cause, tries: 1 };
                if let Err(error) = self.pause_after(error).await {
                    self.ended = true;
                    return Some(Err(error));
                }
                continue;
            };
            self.silent = None;
            if self.is_news(&round) {
                self.ended = is_terminal(&round);
                self.shown = Some(round.clone());
                return Some(Ok(round));
            }
        }
        None
    }

    async fn receive(&mut self) -> Result<Option<Round>, ClientError> {
        let tries = self.silent.map_or(1, |(_, tries)| tries + 1);
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let request = WatchRoundRequest { round: self.round.clone() };
                let opened = self.client.send(request, |mut c, r| async move { c.watch_round(r).await }).await;
                opened.map_err(|status| ClientError::from_status(&status, self.client.address(), tries))?
            }
        };
        let received = stream.message().await;
        let received = received.map_err(|status| ClientError::from_status(&status, self.client.address(), tries))?;
        self.stream = Some(stream);
        Ok(received)
    }

    /// Persisted changes raise the version; the progress of a transfer changes under the same one.
    fn is_news(&self, round: &Round) -> bool {
        self.shown
            .as_ref()
            .is_none_or(|shown| round.version > shown.version || (round.version == shown.version && round != shown))
    }

    /// Waits before the watch is opened again, or gives the error back if it is not to be.
    async fn pause_after(&mut self, error: ClientError) -> Result<(), ClientError> {
        let settings = self.client.settings();
        let (since, tries) = self.silent.unwrap_or((Instant::now(), 0));
        let tries = tries + 1;
        self.silent = Some((since, tries));
        let pause = settings.retry.backoff(tries);
        if error.retryable() != Retryable::Yes || since.elapsed() + pause > settings.reconnect_for {
            return Err(error);
        }
        tracing::debug!(%error, round.id = %self.round, tries, ?pause, "watch broke, opening it again");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}
