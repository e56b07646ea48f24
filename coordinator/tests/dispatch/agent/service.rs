//! The calls of an agent's service.

use lockstep_proto::v1;
use lockstep_protocol::problem::Reason;
use tonic::{Code, Request, Response, Status};

use super::{
    Play, Told, local,
    script::{Held, Scripted, Transfer, refuse},
};

#[tonic::async_trait]
impl v1::agent_server::Agent for Scripted {
    async fn describe(&self, _: Request<v1::DescribeRequest>) -> Result<Response<v1::DescribeResponse>, Status> {
        Ok(Response::new(v1::DescribeResponse {
            pipeline: "orders".to_owned(),
            host_info: Some(v1::HostInfo { host_idx: self.host_idx, n_hosts: self.n_hosts }),
            incarnation: self.lock().incarnation.clone(),
            ..v1::DescribeResponse::default()
        }))
    }

    async fn list_checkpoints(
        &self,
        _: Request<v1::ListLocalCheckpointsRequest>,
    ) -> Result<Response<v1::ListLocalCheckpointsResponse>, Status> {
        let state = self.lock();
        Ok(Response::new(v1::ListLocalCheckpointsResponse {
            incarnation: state.incarnation.clone(),
            checkpoints: state.checkpoints.clone(),
        }))
    }

    async fn push(&self, request: Request<v1::PushOrder>) -> Result<Response<v1::PushStatusResponse>, Status> {
        let order = request.into_inner();
        let mut state = self.lock();
        let header = self.check(&mut state, order.header.clone())?;
        self.call(&mut state, "push", &header);
        let key = (header.round.clone(), header.attempt);
        if !state.transfers.contains_key(&key) {
            let lies = state.plays.front() == Some(&Play::Lie);
            let strays = state.plays.front() == Some(&Play::Stray);
            let holds = state.plays.front() == Some(&Play::Hold);
            let forgets = state.plays.front() == Some(&Play::Forget);
            let transfer = match self.play(&mut state, &header)? {
                Some(transfer) => transfer,
                None => Transfer::Pushed(self.write_part(&order, order.step + u64::from(lies), strays)),
            };
            if holds {
                state.held = Some(Held::Push(order));
            }
            if state.incarnation == header.incarnation {
                state.transfers.insert(key.clone(), transfer);
            }
            let answer = self.push_status(&mut state, &header);
            if forgets {
                state.transfers.remove(&key);
            }
            return Ok(Response::new(answer));
        }
        Ok(Response::new(self.push_status(&mut state, &header)))
    }

    async fn pull(&self, request: Request<v1::PullOrder>) -> Result<Response<v1::PullStatusResponse>, Status> {
        let order = request.into_inner();
        let mut state = self.lock();
        let header = self.check(&mut state, order.header.clone())?;
        self.call(&mut state, "pull", &header);
        let key = (header.round.clone(), header.attempt);
        if !state.transfers.contains_key(&key) {
            let holds = state.plays.front() == Some(&Play::Hold);
            let transfer = match self.play(&mut state, &header)? {
                Some(transfer) => transfer,
                None => Transfer::Pulled(state.stage(&order)),
            };
            if holds {
                state.held = Some(Held::Pull(order));
            }
            if state.incarnation == header.incarnation {
                state.transfers.insert(key, transfer);
            }
        }
        Ok(Response::new(self.pull_status(&mut state, &header)))
    }

    async fn push_status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::PushStatusResponse>, Status> {
        let request = request.into_inner();
        let header = self.check(&mut self.lock(), request.header)?;
        self.wait(request.wait, || self.is_running(&header)).await;
        let mut state = self.lock();
        Ok(Response::new(self.push_status(&mut state, &header)))
    }

    async fn pull_status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::PullStatusResponse>, Status> {
        let request = request.into_inner();
        let header = self.check(&mut self.lock(), request.header)?;
        self.wait(request.wait, || self.is_running(&header)).await;
        let mut state = self.lock();
        Ok(Response::new(self.pull_status(&mut state, &header)))
    }

    async fn install(&self, request: Request<v1::InstallOrder>) -> Result<Response<v1::PullStatusResponse>, Status> {
        let order = request.into_inner();
        let mut state = self.lock();
        let header = self.check(&mut state, order.header)?;
        self.call(&mut state, "install", &header);
        let mut done = v1::PullDone {
            reach: v1::PullReach::Installed.into(),
            local_checkpoint: order.local_checkpoint.clone(),
            step: order.step,
            ..v1::PullDone::default()
        };
        let staged = state.staged.take().filter(|(id, _)| *id == order.local_checkpoint);
        let kept = state.checkpoints.iter().find(|checkpoint| checkpoint.uuid == order.local_checkpoint).cloned();
        state.checkpoints = match (order.fresh, staged, kept) {
            (true, ..) => Vec::new(),
            (false, Some((id, step)), _) => {
                (done.files, done.bytes) = (1, 5);
                vec![v1::LocalCheckpoint { uuid: id, ..local(step) }]
            }
            (false, None, Some(kept)) => vec![kept],
            (false, None, None) => {
                return refuse(Code::NotFound, Reason::CheckpointNotFound, "neither staged nor local here");
            }
        };
        state.transfers.insert((header.round.clone(), header.attempt), Transfer::Pulled(done));
        Ok(Response::new(self.pull_status(&mut state, &header)))
    }

    async fn ready(&self, request: Request<v1::ReadyOrder>) -> Result<Response<v1::ReadyResponse>, Status> {
        let order = request.into_inner();
        let header = order.header.clone().unwrap_or_default();
        let mut state = self.lock();
        if header.incarnation != state.incarnation {
            return refuse(Code::FailedPrecondition, Reason::IncarnationMismatch, "another incarnation");
        }
        self.call(&mut state, "ready", &header);
        if state.deaf {
            return Err(Status::unavailable("as the script says"));
        }
        let told = Told {
            round: header.round,
            round_no: header.round_no,
            term: header.term,
            step: order.step,
            fresh: order.fresh,
            role: order.role(),
        };
        let last = state.told.last().map_or((0, 0), |last| (last.round_no, last.term));
        if (told.round_no, told.term) < last {
            return refuse(Code::FailedPrecondition, Reason::StaleTerm, "an older word");
        }
        state.told.push(told);
        self.changed.send_replace(());
        Ok(Response::new(v1::ReadyResponse { incarnation: state.incarnation.clone() }))
    }

    async fn cancel(&self, request: Request<v1::CancelOrder>) -> Result<Response<v1::CancelResponse>, Status> {
        let mut state = self.lock();
        let header = self.check(&mut state, request.into_inner().header)?;
        self.call(&mut state, "cancel", &header);
        state.transfers.retain(|(round, _), _| *round != header.round);
        state.held = None;
        Ok(Response::new(v1::CancelResponse { stopped: true }))
    }

    async fn sync(&self, _: Request<v1::SyncRequest>) -> Result<Response<v1::SyncResponse>, Status> {
        refuse(Code::FailedPrecondition, Reason::MultihostRequiresCoordinator, "three hosts")
    }
}
