//! A host with its agent and its disk: the checks are the production ones, the disk is a list of local checkpoints.

use std::{collections::BTreeMap, rc::Rc};

use lockstep_protocol::{
    commit::{CommitPart, CommitRef},
    host::Slot,
    id::{Attempt, Fingerprint, Incarnation, LocalCheckpointId, RoundId, Step},
    order::{
        Admission, AgentIdentity, KnownTransfer, OrderHeader, OrderMark, PipelineSelector, admit, check_identity,
        check_mark,
    },
    planted::{self, Bug},
    problem::{Problem, Reason},
    selection::LocalCheckpoint,
};
use uuid::Uuid;

use super::{
    audit,
    fault::Fault,
    timeline::{Instant, MILLISECOND, Process, SECOND, TaskId},
    transfer,
    world::{LocalContent, Sim, Way, request},
};

#[derive(Debug)]
pub(super) struct Agent {
    pub(super) site: usize,
    pub(super) slot: Slot,
    pub(super) process: Process,
    pub(super) incarnation: Incarnation,
    pub(super) up: bool,
    pub(super) cut_off_until: Instant,
    pub(super) disk: Disk,
    register: Register,
}

/// What outlives the process.
#[derive(Default, Debug)]
pub(super) struct Disk {
    /// Oldest first.
    pub(super) checkpoints: Vec<LocalCheckpointId>,
    mark: Option<OrderMark>,
}

/// What does not.
#[derive(Default, Debug)]
struct Register {
    known: Option<(RoundId, Attempt)>,
    running: Option<TaskId>,
    /// Stopped, not yet cleaned up.
    stopping: bool,
    state: State,
    staged: Option<(RoundId, LocalCheckpointId)>,
}

/// Where a transfer stands, as its status says.
#[derive(Clone, Default, Debug)]
pub(super) enum State {
    #[default]
    NotRequested,
    InProgress,
    Pushed(Box<Pushed>),
    Staged(LocalCheckpointId),
    Installed(Option<LocalCheckpointId>),
    Failed(Problem),
}

#[derive(Clone, Debug)]
pub(super) struct Pushed {
    pub(super) part: CommitPart,
    pub(super) step: Step,
    pub(super) fingerprint: Option<Fingerprint>,
}

/// Status of one attempt, from one process.
#[derive(Clone, Debug)]
pub(super) struct Status {
    pub(super) incarnation: Incarnation,
    pub(super) state: State,
}

#[derive(Clone, Debug)]
pub(super) struct PushOrder {
    pub(super) header: OrderHeader,
    pub(super) local_checkpoint: LocalCheckpointId,
    pub(super) base: Option<(CommitRef, Vec<CommitPart>)>,
}

#[derive(Clone, Debug)]
pub(super) struct PullOrder {
    pub(super) header: OrderHeader,
    pub(super) part: CommitPart,
}

/// What a host shall have as its only checkpoint; none: nothing at all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Install {
    pub(super) checkpoint: Option<(LocalCheckpointId, Step)>,
}

impl Agent {
    pub(super) fn new(site: usize, slot: Slot, process: Process, incarnation: Uuid) -> Self {
        Self {
            site,
            slot,
            process,
            incarnation: Incarnation::new(incarnation),
            up: true,
            cut_off_until: 0,
            disk: Disk::default(),
            register: Register::default(),
        }
    }

    /// The process is gone, and with it everything but the disk.
    pub(super) fn stop(&mut self) {
        self.up = false;
        self.register = Register::default();
    }

    pub(super) fn start(&mut self, process: Process, incarnation: Uuid) {
        self.up = true;
        self.process = process;
        self.incarnation = Incarnation::new(incarnation);
    }

    pub(super) fn holds(&self, checkpoint: LocalCheckpointId) -> bool {
        self.disk.checkpoints.contains(&checkpoint)
    }

    pub(super) fn list(&self, contents: &BTreeMap<LocalCheckpointId, Rc<LocalContent>>) -> Vec<LocalCheckpoint> {
        let listed = |id: &LocalCheckpointId| {
            let content = contents.get(id)?;
            Some(LocalCheckpoint {
                id: *id,
                step: content.step,
                fingerprint: content.fingerprint,
                processed_records: None,
                bytes: 8 * content.files.len() as u64,
                files: content.files.len() as u64,
                created_at: None,
            })
        };
        self.disk.checkpoints.iter().filter_map(listed).collect()
    }

    fn gate(&self, sim: &Sim, header: &OrderHeader) -> Result<(), Problem> {
        let identity = AgentIdentity {
            pipeline: PipelineSelector::Name(header.pipeline_name.clone()),
            slot: self.slot,
            incarnation: self.incarnation,
            allowed: vec![sim.location.clone()],
        };
        check_identity(header, &identity, &[&header.own_location])?;
        check_mark(header, self.disk.mark)
    }

    fn raise(&mut self, header: &OrderHeader) {
        self.disk.mark = self.disk.mark.max(Some(header.mark()));
    }

    fn known(&self) -> Option<KnownTransfer> {
        let running = self.register.running.is_some() || self.register.stopping;
        self.register.known.map(|(round, attempt)| KnownTransfer { round, attempt, running })
    }

    fn status_of(&self, header: &OrderHeader) -> Status {
        let known = self.register.known == Some((header.round, header.attempt));
        let state = if known { self.register.state.clone() } else { State::NotRequested };
        Status { incarnation: self.incarnation, state }
    }

    pub(super) fn status(&self, sim: &Sim, header: &OrderHeader) -> Result<Status, Problem> {
        self.gate(sim, header)?;
        Ok(self.status_of(header))
    }

    pub(super) fn push(&mut self, sim: &Sim, order: &PushOrder) -> Result<Status, Problem> {
        self.order(sim, &order.header, transfer::push(sim, self.at(), order.clone()))
    }

    pub(super) fn pull(&mut self, sim: &Sim, order: &PullOrder) -> Result<Status, Problem> {
        self.order(sim, &order.header, transfer::pull(sim, self.at(), order.clone()))
    }

    fn at(&self) -> At {
        At { site: self.site, host: self.slot.idx() as usize, incarnation: self.incarnation }
    }

    fn order(
        &mut self,
        sim: &Sim,
        header: &OrderHeader,
        transfer: impl Future<Output = ()> + 'static,
    ) -> Result<Status, Problem> {
        self.gate(sim, header)?;
        match admit(header, self.known()) {
            Admission::Refuse(problem) => return Err(problem),
            Admission::Known => self.raise(header),
            Admission::CancelRunning(problem) => {
                self.raise(header);
                self.abort(sim);
                return Err(problem);
            }
            Admission::Start => {
                self.raise(header);
                self.begin(header);
                self.register.staged = None;
                self.register.running = Some(sim.timeline.spawn(self.process, transfer));
            }
        }
        Ok(self.status_of(header))
    }

    fn begin(&mut self, header: &OrderHeader) {
        self.register.known = Some((header.round, header.attempt));
        self.register.state = State::InProgress;
    }

    /// What runs is dropped where it waits; its clean-up takes a while.
    fn abort(&mut self, sim: &Sim) {
        let Some(running) = self.register.running.take() else { return };
        sim.timeline.abort(running);
        self.register.stopping = true;
        let (at, world) = (self.at(), Rc::clone(sim));
        let after = sim.random(MILLISECOND, SECOND);
        sim.timeline.spawn(self.process, async move {
            world.sleep(after).await;
            at.with(&world, |agent| {
                agent.register.stopping = false;
                agent.register.state = State::Failed(Problem::new(Reason::Cancelled, "replaced"));
            });
        });
    }

    /// A transfer is over.
    pub(super) fn finish(&mut self, round: RoundId, state: State) {
        self.register.running = None;
        if let State::Staged(id) = &state {
            self.register.staged = Some((round, *id));
        }
        self.register.state = state;
    }

    pub(super) fn install(&mut self, sim: &Sim, header: &OrderHeader, what: Install) -> Result<Status, Problem> {
        self.gate(sim, header)?;
        match admit(header, self.known()) {
            Admission::Refuse(problem) => return Err(problem),
            Admission::CancelRunning(problem) => {
                self.raise(header);
                self.abort(sim);
                return Err(problem);
            }
            Admission::Known if self.register.running.is_some() || self.register.stopping => {
                self.raise(header);
                return Ok(self.status_of(header));
            }
            Admission::Known => {
                self.raise(header);
                // What was installed once is not installed over what the engine has made since.
                if matches!(self.register.state, State::Installed(id) if id == what.checkpoint.map(|(id, _)| id)) {
                    return Ok(self.status_of(header));
                }
            }
            Admission::Start => {
                self.raise(header);
                self.begin(header);
                self.register.staged = self.register.staged.filter(|(round, _)| *round == header.round);
            }
        }
        self.register.state = self.place(sim, header, what)?;
        Ok(self.status_of(header))
    }

    fn place(&mut self, sim: &Sim, header: &OrderHeader, what: Install) -> Result<State, Problem> {
        let Some((id, step)) = what.checkpoint else {
            self.disk.checkpoints.clear();
            return Ok(State::Installed(None));
        };
        let staged = self.register.staged.take_if(|staged| *staged == (header.round, id)).is_some();
        if !staged && !self.holds(id) {
            let problem =
                Problem::new(Reason::CheckpointNotFound, format!("{id} of step {step} is neither staged nor local"));
            self.register.state = State::Failed(problem.clone());
            return Err(problem);
        }
        if planted::is(Bug::OtherCheckpointsStay) {
            self.disk.checkpoints.retain(|checkpoint| *checkpoint != id);
            self.disk.checkpoints.push(id);
        } else {
            self.disk.checkpoints = vec![id];
        }
        sim.log(|| format!("{}: installed {id}", self.slot));
        audit::installed(sim, self.incarnation, id, header.round_no);
        Ok(State::Installed(Some(id)))
    }

    /// Nothing of the round runs here afterwards, at least soon.
    pub(super) fn cancel(&mut self, sim: &Sim, header: &OrderHeader) -> Result<(), Problem> {
        self.gate(sim, header)?;
        self.raise(header);
        if self.register.known.is_some_and(|(round, _)| round == header.round) {
            self.abort(sim);
            self.register.staged = None;
        }
        Ok(())
    }
}

/// One process of one host.
#[derive(Clone, Copy, Debug)]
pub(super) struct At {
    pub(super) site: usize,
    pub(super) host: usize,
    pub(super) incarnation: Incarnation,
}

impl At {
    /// Nothing if that process is gone.
    pub(super) fn with<R>(self, sim: &Sim, act: impl FnOnce(&mut Agent) -> R) -> Option<R> {
        let site = sim.site(self.site)?;
        let mut agent = site.agents.get(self.host)?.borrow_mut();
        (agent.up && agent.incarnation == self.incarnation).then(|| act(&mut agent))
    }
}

/// What a coordinator hears of an agent.
#[derive(Clone, Debug)]
pub(super) enum Answer<R> {
    Given(R),
    Refused(Problem),
    Unknown,
}

const WAY: Way = Way {
    lost: Fault::CallLost,
    answer_lost: Fault::CallAnswerLost,
    late: Fault::CallLate,
    twice: Some(Fault::CallTwice),
    patience: 5 * SECOND,
    latency: 10 * MILLISECOND,
};

/// A call to whatever process runs for a host when it arrives.
pub(super) async fn call<R: 'static>(
    sim: &Sim,
    site: usize,
    host: u32,
    handle: impl Fn(&Sim, &mut Agent) -> Result<R, Problem> + 'static,
) -> Answer<R> {
    let answered = request(sim, WAY, move |sim| {
        let mut agent = sim.site(site)?.agents.get(host as usize)?.borrow_mut();
        (agent.up && agent.cut_off_until <= sim.now()).then(|| handle(sim, &mut agent))
    });
    match answered.await {
        Some(Some(Ok(answer))) => Answer::Given(answer),
        Some(Some(Err(problem))) => Answer::Refused(problem),
        // Nobody listens: known at once.
        Some(None) => {
            sim.sleep(100 * MILLISECOND).await;
            Answer::Unknown
        }
        None => Answer::Unknown,
    }
}
