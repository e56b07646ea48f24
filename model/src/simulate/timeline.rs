//! Virtual time. Tasks run one at a time, in an order that depends on nothing but when they asked to be woken.

use std::{
    cell::{Cell, RefCell},
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    fmt,
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

/// Microseconds since the simulation began.
pub(super) type Instant = u64;

pub(super) const MILLISECOND: u64 = 1_000;
pub(super) const SECOND: u64 = 1_000_000;

/// Something that is killed and paused as a whole.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Process(pub(super) u32);

/// Network, callers and the simulation itself: never killed.
pub(super) const OUTSIDE: Process = Process(0);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct TaskId(u64);

type Body = Pin<Box<dyn Future<Output = ()>>>;

struct Task {
    process: Process,
    /// None while it is being polled.
    body: Option<Body>,
}

#[derive(Default)]
pub(super) struct Timeline {
    now: Cell<Instant>,
    current: Cell<Option<TaskId>>,
    inner: RefCell<Inner>,
}

#[derive(Default)]
struct Inner {
    asked: u64,
    due: BinaryHeap<Reverse<(Instant, u64, TaskId)>>,
    tasks: BTreeMap<TaskId, Task>,
    paused: BTreeMap<Process, Instant>,
}

impl fmt::Debug for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timeline").field("now", &self.now.get()).finish_non_exhaustive()
    }
}

impl Timeline {
    pub(super) fn now(&self) -> Instant {
        self.now.get()
    }

    fn wake_at(&self, at: Instant, task: TaskId) {
        let mut inner = self.inner.borrow_mut();
        inner.asked += 1;
        let order = inner.asked;
        inner.due.push(Reverse((at, order, task)));
    }

    pub(super) fn spawn(&self, process: Process, body: impl Future<Output = ()> + 'static) -> TaskId {
        let id = {
            let mut inner = self.inner.borrow_mut();
            inner.asked += 1;
            let id = TaskId(inner.asked);
            inner.tasks.insert(id, Task { process, body: Some(Box::pin(body)) });
            id
        };
        self.wake_at(self.now(), id);
        id
    }

    /// Drops a task where it waits. One that runs drops when it next waits.
    pub(super) fn abort(&self, id: TaskId) {
        let task = self.inner.borrow_mut().tasks.remove(&id);
        drop(task);
    }

    /// Drops every task of a process.
    pub(super) fn kill(&self, process: Process) {
        let mut inner = self.inner.borrow_mut();
        let ids: Vec<TaskId> =
            inner.tasks.iter().filter(|(_, task)| task.process == process).map(|(id, _)| *id).collect();
        let dropped: Vec<Option<Task>> = ids.iter().map(|id| inner.tasks.remove(id)).collect();
        inner.paused.remove(&process);
        drop(inner);
        drop(dropped);
    }

    /// Nothing of the process runs until then.
    pub(super) fn pause(&self, process: Process, until: Instant) {
        self.inner.borrow_mut().paused.insert(process, until);
    }

    /// Runs what is due up to and at `until`, or until `stop` says so after a step.
    pub(super) fn run(&self, until: Instant, stop: impl Fn() -> bool) {
        while let Some((task, mut body)) = self.next(until) {
            self.current.set(Some(task));
            let waits = body.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending();
            self.current.set(None);
            let mut inner = self.inner.borrow_mut();
            if waits {
                if let Some(task) = inner.tasks.get_mut(&task) {
                    task.body = Some(body);
                }
            } else {
                inner.tasks.remove(&task);
            }
            drop(inner);
            if stop() {
                return;
            }
        }
        self.now.set(self.now.get().max(until));
    }

    fn next(&self, until: Instant) -> Option<(TaskId, Body)> {
        let mut inner = self.inner.borrow_mut();
        loop {
            let Reverse((at, _, _)) = *inner.due.peek()?;
            if at > until {
                return None;
            }
            let Reverse((at, _, id)) = inner.due.pop()?;
            let Some(process) = inner.tasks.get(&id).map(|task| task.process) else { continue };
            if let Some(&resumed) = inner.paused.get(&process) {
                if resumed > at {
                    inner.asked += 1;
                    let order = inner.asked;
                    inner.due.push(Reverse((resumed, order, id)));
                    continue;
                }
                inner.paused.remove(&process);
            }
            self.now.set(self.now.get().max(at));
            if let Some(body) = inner.tasks.get_mut(&id).and_then(|task| task.body.take()) {
                return Some((id, body));
            }
        }
    }

    /// Drops everything: tasks hold the world that holds the timeline.
    pub(super) fn clear(&self) {
        let tasks = std::mem::take(&mut self.inner.borrow_mut().tasks);
        drop(tasks);
    }

    pub(super) fn sleep(self: &Rc<Self>, for_: u64) -> Sleep {
        Sleep { timeline: Rc::clone(self), until: self.now() + for_, armed: false }
    }
}

pub(super) struct Sleep {
    timeline: Rc<Timeline>,
    until: Instant,
    armed: bool,
}

impl Future for Sleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if self.timeline.now() >= self.until {
            return Poll::Ready(());
        }
        if !self.armed {
            self.armed = true;
            if let Some(task) = self.timeline.current.get() {
                self.timeline.wake_at(self.until, task);
            }
        }
        Poll::Pending
    }
}

/// Messages for one task.
pub(super) struct Mailbox<T> {
    timeline: Rc<Timeline>,
    items: RefCell<VecDeque<T>>,
    waiting: Cell<Option<TaskId>>,
}

impl<T> Mailbox<T> {
    pub(super) fn new(timeline: &Rc<Timeline>) -> Rc<Self> {
        Rc::new(Self { timeline: Rc::clone(timeline), items: RefCell::default(), waiting: Cell::new(None) })
    }

    pub(super) fn send(&self, item: T) {
        self.items.borrow_mut().push_back(item);
        if let Some(task) = self.waiting.take() {
            self.timeline.wake_at(self.timeline.now(), task);
        }
    }

    /// What is there by now.
    pub(super) fn take_all(&self) -> Vec<T> {
        self.items.borrow_mut().drain(..).collect()
    }

    /// None: nothing came by then.
    pub(super) fn receive(&self, until: Instant) -> Receive<'_, T> {
        Receive { mailbox: self, until, armed: false }
    }
}

pub(super) struct Receive<'m, T> {
    mailbox: &'m Mailbox<T>,
    until: Instant,
    armed: bool,
}

impl<T> Future for Receive<'_, T> {
    type Output = Option<T>;
    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<T>> {
        let mailbox = self.mailbox;
        if let Some(item) = mailbox.items.borrow_mut().pop_front() {
            return Poll::Ready(Some(item));
        }
        if mailbox.timeline.now() >= self.until {
            return Poll::Ready(None);
        }
        let Some(task) = mailbox.timeline.current.get() else { return Poll::Pending };
        mailbox.waiting.set(Some(task));
        if !self.armed {
            self.armed = true;
            mailbox.timeline.wake_at(self.until, task);
        }
        Poll::Pending
    }
}
