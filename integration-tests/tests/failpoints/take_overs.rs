//! A coordinator dies in a take-over, while a push of the same pipeline is open: the other one ends the take-over, and with it the push.

use std::time::Instant;

use lockstep_client::{
    ClientError, LockstepClient,
    v1::{self, RoundPhase},
};
use lockstep_integration_tests::{
    cluster::{BUCKET, PIPELINE},
    wait,
};

use crate::{
    coordinators::{Case, Replicas, patient, transferring},
    lane::Outcome,
};

async fn begin_push(client: &LockstepClient) -> v1::Round {
    let request = v1::StartPushRequest { pipeline: PIPELINE.to_owned(), ..v1::StartPushRequest::default() };
    let round = client.start_push(request).await.unwrap();
    transferring(client, &round.id).await;
    round
}

/// Asked until there is an answer: the same id is the same take-over, whoever answers.
async fn taken_over(client: &LockstepClient, request: &v1::TakeOverRequest) -> v1::TakeOverResponse {
    wait::until("the location is taken over", || client.take_over(request.clone())).await
}

impl Replicas {
    pub(crate) async fn take_over(&mut self, case: &Case) -> Outcome {
        let before = self.cluster.client.get_pipeline(PIPELINE).await.unwrap().generation;
        let request = v1::TakeOverRequest {
            pipeline: PIPELINE.to_owned(),
            request_id: uuid::Uuid::new_v4().to_string(),
            validate_only: false,
        };
        self.checkpoint();
        let fault = self.hold_up_host_1();
        let (round, taken, began) = if case.panics {
            self.panic_in_take_over(case, &request).await
        } else {
            self.die_in_take_over(case, &request).await
        };
        let recovery = began.elapsed();
        assert_eq!(taken.generation, before + 1);
        self.cluster.s3.faults().remove(fault);
        let round = patient(&self.cluster).wait_round(&round.id).await.unwrap();
        assert!(case.ends.contains(&round.phase()), "{round:?}");
        if round.phase() == RoundPhase::Failed {
            assert_eq!(round.problem.as_ref().map(|problem| problem.reason.as_str()), Some("FENCED"), "{round:?}");
        }
        let keys = self.cluster.s3.admin().keys(BUCKET, &format!("{PIPELINE}/fences/")).unwrap();
        let bases = keys.iter().filter(|key| key.ends_with(".base.json")).count() as u64;
        assert_eq!(
            (keys.len() as u64 - bases, bases),
            (before + 1, before),
            "one fence and one base a generation: {keys:?}"
        );
        Outcome { end: format!("generation {}, push {:?}", taken.generation, round.phase()), recovery }
    }

    async fn panic_in_take_over(
        &mut self,
        case: &Case,
        request: &v1::TakeOverRequest,
    ) -> (v1::Round, v1::TakeOverResponse, Instant) {
        let said = format!("failpoint {} reached", case.point);
        let before = self.cluster.coordinator_log().matches(&said).count();
        self.restart_survivor(&format!("{}=panic", case.point)).await;
        let client = patient(&self.cluster);
        let round = begin_push(&client).await;
        let began = Instant::now();
        let taken = taken_over(&client, request).await;
        assert!(self.cluster.coordinator_log().matches(&said).count() > before, "it did not come to where it panics");
        (round, taken, began)
    }

    async fn die_in_take_over(
        &mut self,
        case: &Case,
        request: &v1::TakeOverRequest,
    ) -> (v1::Round, v1::TakeOverResponse, Instant) {
        if let Some(then) = case.then {
            self.restart_survivor(&format!("{then}=kill")).await;
        }
        let mut victim = self.victim(&format!("{}=kill", case.point)).await;
        let round = begin_push(&victim.client).await;
        let asked: Result<_, ClientError> = victim.client.take_over(request.clone()).await;
        victim.process.killed().await;
        let died = Instant::now();
        self.cluster.pause_coordinator(false);
        let client = patient(&self.cluster);
        let taken = taken_over(&client, request);
        tokio::pin!(taken);
        let mut died_twice = false;
        let taken = loop {
            tokio::select! {
                taken = &mut taken => break taken,
                () = self.cluster.coordinator_killed(), if case.then.is_some() && !died_twice => {
                    died_twice = true;
                    self.cluster.start_coordinator().await;
                }
            }
        };
        if let Ok(told) = asked {
            assert_eq!(told.take_over, taken.take_over, "one id, one take-over");
        }
        if case.then.is_some() && !died_twice {
            self.restart_survivor("").await;
        }
        (round, taken, died)
    }
}
