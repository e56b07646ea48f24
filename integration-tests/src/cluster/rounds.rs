//! Rounds and verifications of a cluster's pipeline, as a client asks for them.

use lockstep_client::v1;
use tokio_stream::StreamExt as _;

use super::{Cluster, PIPELINE};
use crate::wait;

impl Cluster {
    /// Admits a push.
    pub async fn start_push(&self) -> v1::Round {
        let request = v1::StartPushRequest { pipeline: PIPELINE.to_owned(), ..v1::StartPushRequest::default() };
        self.client.start_push(request).await.expect("the push is admitted")
    }

    /// Pushes the newest common step and waits for the end, whatever it is.
    pub async fn push(&self) -> v1::Round {
        let round = self.start_push().await;
        self.client.wait_round(&round.id).await.expect("the push can be waited for")
    }

    /// Pushes and insists that it is committed.
    pub async fn pushed(&self) -> v1::Round {
        let round = self.push().await;
        assert_eq!(round.phase(), v1::RoundPhase::Committed, "{:?}", round.problem);
        round
    }

    /// A pull of this cluster's pipeline: `standby: false`, the rest as the spec says.
    pub fn pull_request() -> v1::StartPullRequest {
        v1::StartPullRequest { pipeline: PIPELINE.to_owned(), standby: Some(false), ..v1::StartPullRequest::default() }
    }

    /// Pulls as asked and waits for the end, whatever it is.
    pub async fn pull(&self, request: v1::StartPullRequest) -> v1::Round {
        let round = self.client.start_pull(request).await.expect("the pull is admitted");
        self.client.wait_round(&round.id).await.expect("the pull can be waited for")
    }

    /// Pulls the newest and insists that it is installed.
    pub async fn pulled(&self) -> v1::Round {
        let round = self.pull(Self::pull_request()).await;
        assert_eq!(round.phase(), v1::RoundPhase::Installed, "{:?}", round.problem);
        round
    }

    /// Waits until the round looks as asked; fails if it ends before that.
    pub async fn round_when(&self, id: &str, what: &str, like: impl Fn(&v1::Round) -> bool) -> v1::Round {
        wait::until(what, || async {
            let round = self.client.get_round(id).await.map_err(|error| error.to_string())?;
            if like(&round) {
                return Ok(round);
            }
            assert!(!lockstep_client::is_terminal(&round), "the round ended as {round:?} before {what}");
            Err(format!("{:?}", round.phase()))
        })
        .await
    }

    /// Verifies one checkpoint to its end.
    pub async fn verify(&self, checkpoint: &str) -> v1::VerifyCheckpointResponse {
        let mut stream = self.client.verify_checkpoint(PIPELINE, checkpoint).await.expect("the verification starts");
        loop {
            let message = stream.next().await.expect("a verification ends with done").expect("a verification goes on");
            if message.done {
                return message;
            }
        }
    }
}
