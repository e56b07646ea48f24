//! Orders: every check before any S3 or disk access, one transfer at a time (protocol.md, "Agent's rules").

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    id::RoundId,
    location::Location,
    order::{Admission, OrderHeader, admit, check_identity, check_mark, check_ready},
    problem::{Problem, Reason},
    ready::Word,
};
use tokio::{sync::MutexGuard, time::Instant};

use crate::{
    core::Core,
    durable, install,
    marks::Marks,
    order::{Install, Pull, Push, Ready},
    pull, push, ready,
    register::{Activity, Family, Running, State, View, ViewState},
};

/// A status that is only progress is answered at most this often.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// How long `Cancel` waits for the transfer to have stopped before it answers that it has not.
const CANCEL_WAIT: Duration = Duration::from_secs(20);

/// How long `Install` waits for its end before it answers with progress.
const INSTALL_WAIT: Duration = Duration::from_secs(60);

impl Core {
    /// Compares an order with what this agent was started with. The order's own location must be allowed whatever it is used for: the highest order
    /// is kept for it.
    pub(crate) fn identify(&self, header: &OrderHeader, source: Option<&Location>) -> Result<(), Problem> {
        let touches: Vec<&Location> = std::iter::once(&header.own_location).chain(source).collect();
        check_identity(header, &self.identity, &touches)
    }

    fn refuse_while_alone(&self) -> Result<(), Problem> {
        match self.register.running() {
            Some(running) if matches!(running.activity, Activity::Sync | Activity::Start) => {
                let kind = running.activity.as_str();
                let message = format!("a {kind} without a coordinator runs here; order again when it has ended");
                Err(Problem::new(Reason::TransferInProgress, message).with("kind", kind).with("round", running.round))
            }
            _ => Ok(()),
        }
    }

    /// The gate, for an order that is not older than the highest.
    async fn gate(&self, header: &OrderHeader) -> Result<MutexGuard<'_, Marks>, Problem> {
        let marks = self.marks.lock().await;
        self.refuse_when_leaving()?;
        self.refuse_while_alone()?;
        check_mark(header, marks.highest(header))?;
        Ok(marks)
    }

    /// Makes the order's mark durable. Small and rare, but it syncs: not on an async thread.
    async fn raise(&self, marks: &mut Marks, header: &OrderHeader) -> Result<(), Problem> {
        if marks.highest(header).is_some_and(|highest| highest >= header.mark()) {
            return Ok(());
        }
        let (mut next, header) = (marks.clone(), header.clone());
        *marks = self.blocking(move || next.raise(&header).map(|()| next)).await?;
        Ok(())
    }

    /// Admits a transfer order and starts it. Runs to its end once called: see [`Core::whole`].
    async fn order(
        self: Arc<Self>,
        header: OrderHeader,
        family: Family,
        start: impl FnOnce(&Arc<Self>),
    ) -> Result<View, Problem> {
        let mut marks = self.gate(&header).await?;
        match admit(&header, self.register.known()) {
            Admission::Refuse(problem) => return Err(problem),
            Admission::Known => {
                self.same_family(&header, family)?;
                self.raise(&mut marks, &header).await?;
            }
            Admission::CancelRunning(problem) => {
                self.raise(&mut marks, &header).await?;
                self.register.stop(
                    Problem::new(
                        Reason::Cancelled,
                        format!("round {} attempt {} replaced it", header.round, header.attempt),
                    )
                    .with("by_round", header.round)
                    .with("by_attempt", header.attempt),
                );
                return Err(problem);
            }
            Admission::Start => {
                self.raise(&mut marks, &header).await?;
                start(&self);
                reached(Point::OrderAccepted);
            }
        }
        Ok(self.register.view(family, header.round, header.attempt))
    }

    fn same_family(&self, header: &OrderHeader, family: Family) -> Result<(), Problem> {
        if self.register.family() == Some(family) {
            return Ok(());
        }
        Err(Problem::new(
            Reason::SpecInvalid,
            format!("round {} attempt {} is known here as the other of push and pull", header.round, header.attempt),
        )
        .with("round", header.round)
        .with("attempt", header.attempt))
    }

    /// `Push`: answered at once.
    pub(crate) async fn push(self: Arc<Self>, order: Push) -> Result<View, Problem> {
        self.identify(&order.header, None)?;
        self.order(order.header.clone(), Family::Push, |core| push::start(core, order)).await
    }

    /// `Pull`: answered at once.
    pub(crate) async fn pull(self: Arc<Self>, order: Pull) -> Result<View, Problem> {
        self.identify(&order.header, Some(&order.source))?;
        self.order(order.header.clone(), Family::Pull, |core| pull::start(core, order)).await
    }

    /// `Install`: answered when it has ended, or with progress after a minute.
    pub(crate) async fn install(self: Arc<Self>, order: Install) -> Result<View, Problem> {
        let Install { header, what } = order;
        self.identify(&header, None)?;
        let (round, attempt) = (header.round, header.attempt);
        let known = {
            let mut marks = self.gate(&header).await?;
            match admit(&header, self.register.known()) {
                Admission::Refuse(problem) => return Err(problem),
                Admission::Known => {
                    self.same_family(&header, Family::Pull)?;
                    self.raise(&mut marks, &header).await?;
                    let view = self.register.view(Family::Pull, round, attempt);
                    if !install::is_in_place(&view, what) && !self.register.is_running() {
                        self.take_back(&header).await?;
                        if self.register.resume_install() {
                            install::start(&self, round, what);
                        }
                    }
                    view
                }
                Admission::CancelRunning(problem) => {
                    self.raise(&mut marks, &header).await?;
                    self.register.stop(
                        Problem::new(Reason::Cancelled, format!("an install of round {round} replaced it"))
                            .with("by_round", round),
                    );
                    return Err(problem);
                }
                Admission::Start => {
                    self.raise(&mut marks, &header).await?;
                    self.take_back(&header).await?;
                    install::begin(&self, round, attempt, what);
                    self.register.view(Family::Pull, round, attempt)
                }
            }
        };
        if self.register.running().is_some_and(|running| running.activity == Activity::Pull) {
            // Not staged yet: whoever ordered the install too early learns how far the pull is.
            return Ok(known);
        }
        self.until_idle(INSTALL_WAIT).await;
        let view = self.register.view(Family::Pull, round, attempt);
        match (self.register.install_problem(), &view.state) {
            (Some(problem), ViewState::Pulled(_) | ViewState::Failed(_)) => Err(problem),
            _ => Ok(view),
        }
    }

    /// Before the disk is changed: what the engine was told holds no more.
    async fn take_back(&self, header: &OrderHeader) -> Result<(), Problem> {
        let mut words = self.words.lock().await;
        let (mut next, header) = (words.clone(), header.clone());
        *words = self.blocking(move || next.take_back(Some(&header)).map(|()| next)).await?;
        Ok(())
    }

    /// `Ready`: what the engine may do. On disk before it is answered.
    pub(crate) async fn ready(self: Arc<Self>, order: Ready) -> Result<(), Problem> {
        let Ready { header, word } = order;
        let of = header.round;
        self.identify(&header, None)?;
        let mut marks = self.marks.lock().await;
        self.refuse_when_leaving()?;
        self.refuse_while_alone()?;
        let mut words = self.words.lock().await;
        check_ready(&header, marks.highest(&header), words.mark(&header))?;
        self.raise(&mut marks, &header).await?;
        let (mut next, store) = (words.clone(), Arc::clone(&self.store));
        let say = move || {
            // The same word again is an answer that was lost: the engine may have gone on from there.
            if !next.keeps(word) {
                ready::check_disk(store.as_ref(), &word)?;
            }
            next.say(Some(&header), word).map(|()| next)
        };
        *words = self.blocking(say).await?;
        tracing::info!(role = %word.role, round = ?word.round, checkpoint = ?word.checkpoint, "the engine is told what it may do");
        drop(words);
        drop(marks);
        self.end_transfer(of).await;
        Ok(())
    }

    /// The round has ended, so that a pull of it that runs or is staged here is of a source that was given up: its owner retired it, and the engine starts fresh. The coordinator's `Cancel`
    /// has a lower term than the word and may come later, to be refused.
    async fn end_transfer(&self, round: RoundId) {
        let cause = Problem::new(Reason::Cancelled, format!("round {round} has ended")).with("round", round);
        let pulls = |running: Running| running.round == round && running.activity == Activity::Pull;
        let runs = self.register.running().is_some_and(pulls);
        if !runs && self.register.staged(round).is_none() {
            return;
        }
        if runs {
            self.register.stop(cause.clone());
            self.until_idle(CANCEL_WAIT).await;
        }
        let _marks = self.marks.lock().await;
        match self.clear_up(round, cause).await {
            Ok(true) => {}
            Ok(false) => tracing::warn!(%round, "a pull of a round that has ended is still being stopped"),
            Err(problem) => {
                tracing::warn!(%round, reason = %problem.reason, "what a pull has left stays: {}", problem.message)
            }
        }
    }

    /// The hook has run for a word.
    pub(crate) async fn note_hook(&self, word: Word, problem: Option<String>) {
        *self.hook_problem.lock().unwrap_or_else(PoisonError::into_inner) = problem.map(|problem| (word, problem));
        let mut words = self.words.lock().await;
        let mut next = words.clone();
        match self.blocking(move || next.hooked(word).map(|()| next)).await {
            Ok(next) => *words = next,
            Err(problem) => {
                tracing::warn!(reason = %problem.reason, "the hook will run again after a restart: {}", problem.message);
            }
        }
    }

    /// `Cancel`: true once nothing of the round runs here and its staging is gone.
    pub(crate) async fn cancel(self: Arc<Self>, header: OrderHeader) -> Result<bool, Problem> {
        self.identify(&header, None)?;
        let cause = Problem::new(Reason::Cancelled, format!("round {} was cancelled", header.round))
            .with("round", header.round);
        {
            let mut marks = self.gate(&header).await?;
            self.raise(&mut marks, &header).await?;
            if self.register.known().is_none_or(|known| known.round != header.round) {
                return Ok(true);
            }
            self.register.stop(cause.clone());
            if self.register.running().is_some_and(|running| running.activity == Activity::Install) {
                return Ok(false);
            }
        }
        self.until_idle(CANCEL_WAIT).await;
        let _marks = self.gate(&header).await?;
        self.clear_up(header.round, cause).await
    }

    /// What a transfer that was stopped has left: true once nothing of the round runs here and its staging is gone. Under the lock of the marks, so that nothing begins meanwhile.
    async fn clear_up(&self, round: RoundId, cause: Problem) -> Result<bool, Problem> {
        if self.register.running().is_some_and(|running| running.round == round) {
            return Ok(false);
        }
        self.left_behind.clear(self).await;
        // The pull may have come to its end before it heard of the stop.
        if let Some(staged) = self.register.staged(round) {
            let folder = staged.checkpoint.folder;
            self.blocking(move || {
                durable::remove_folder(&folder).map_err(|error| durable::io_problem("remove", &folder, &error))
            })
            .await?;
            self.register.finish(State::Failed(cause), None);
        }
        Ok(true)
    }

    pub(crate) async fn until_idle(&self, wait: Duration) {
        let mut changed = self.register.subscribe();
        let idle = async {
            while self.register.running().is_some() {
                if changed.changed().await.is_err() {
                    return;
                }
            }
        };
        // Late is an answer too: the caller looks again.
        let _ = tokio::time::timeout(wait, idle).await;
    }

    /// `PushStatus` and `PullStatus`: now, or when the state changes, or every half second while bytes move, at the latest after `wait`.
    pub(crate) async fn status(&self, header: &OrderHeader, family: Family, wait: Duration) -> Result<View, Problem> {
        self.identify(header, None)?;
        check_mark(header, self.marks.lock().await.highest(header))?;
        let until = Instant::now() + wait;
        let mut changed = self.register.subscribe();
        let mut first = None;
        loop {
            changed.mark_unchanged();
            let view = self.register.view(family, header.round, header.attempt);
            let ViewState::InProgress(snapshot) = &view.state else { return Ok(view) };
            let moved = first.as_ref().is_some_and(|first| snapshot.moved_since(first));
            let now = Instant::now();
            if moved || now >= until {
                return Ok(view);
            }
            first.get_or_insert_with(|| snapshot.clone());
            // A closed channel can't be: the register outlives its receivers.
            let _ = tokio::time::timeout_at((now + PROGRESS_INTERVAL).min(until), changed.changed()).await;
        }
    }

    /// Runs an order to its end even if its caller goes away half way: a mark that is persisted and a transfer that is started belong together.
    pub(crate) async fn whole<T: Send + 'static>(
        order: impl Future<Output = Result<T, Problem>> + Send + 'static,
    ) -> Result<T, Problem> {
        use tracing::Instrument;
        match tokio::spawn(order.in_current_span()).await {
            Ok(outcome) => outcome,
            Err(error) => Err(Problem::new(Reason::AgentPanic, format!("an order was not carried through: {error}"))),
        }
    }
}
