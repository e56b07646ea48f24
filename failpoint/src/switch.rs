//! Counts how often each place is reached and does what the process was told to do there.

use std::{
    io::Write as _,
    path::Path,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{Action, Order, Plan, Point, VARIABLE};

/// Between looks for the file that a place waits for.
const LOOK: Duration = Duration::from_millis(2);

static ORDERS: LazyLock<Vec<(Order, AtomicU64)>> = LazyLock::new(|| {
    let text = std::env::var(VARIABLE).unwrap_or_default();
    match text.parse::<Plan>() {
        Ok(Plan(orders)) => orders.into_iter().map(|order| (order, AtomicU64::new(0))).collect(),
        Err(error) => {
            // A test that believes to have told a process to die must not go on without it.
            say(&format!("{VARIABLE}: {error}"));
            std::process::abort();
        }
    }
});

/// Somebody came to this place: if the process was told to, it dies, stops, panics or waits here. May block the thread.
pub fn reached(point: Point) {
    for (order, times) in ORDERS.iter().filter(|(order, _)| order.point == point) {
        if times.fetch_add(1, Ordering::Relaxed) + 1 == order.nth {
            act(order);
        }
    }
}

fn act(order: &Order) {
    say(&format!("failpoint {} reached, time {}: {:?}", order.point, order.nth, order.action));
    match &order.action {
        Action::Kill => send(Signal::SIGKILL),
        Action::Stop => send(Signal::SIGSTOP),
        #[expect(clippy::panic, reason = "what a test asked for")]
        Action::Panic => panic!("failpoint {}", order.point),
        Action::WaitFor(file) => wait_for(file),
    }
}

/// To the own process: it arrives before this returns.
fn send(signal: Signal) {
    if let Err(error) = kill(Pid::this(), signal) {
        say(&format!("{signal} could not be sent to the own process: {error}"));
        std::process::abort();
    }
}

fn wait_for(file: &Path) {
    while !file.exists() {
        std::thread::sleep(LOOK);
    }
}

/// Whatever the log filter says, and unbuffered: it may be the last thing this process says.
fn say(text: &str) {
    // Nobody is left to tell if stderr is closed.
    let _ = writeln!(std::io::stderr(), "{text}");
}
