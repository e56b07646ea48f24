//! The log of a run: what production code and story say, each line with the virtual time. The same seed has the same log, byte for byte.

use std::{
    cell::{Cell, RefCell},
    fmt, io,
    sync::Once,
    time::Duration,
};

use tokio::time::Instant;
use tracing_subscriber::{
    Layer as _,
    filter::DynFilterFn,
    fmt::{format::Writer, time::FormatTime},
    layer::SubscriberExt as _,
};

thread_local! {
    static CLOCK: Cell<Clock> = const { Cell::new(Clock::None) };
    static LINES: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// One subscriber for the whole process, which hears only threads that collect: subscribers that come and go while other threads register what they say
/// can miss it.
fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Frames of HTTP/2 carry the real date.
        let collects = |said: &tracing::Metadata<'_>, _: &tracing_subscriber::layer::Context<'_, _>| {
            let ours = said.target().starts_with("lockstep") || said.target().starts_with("simulation");
            ours && *said.level() <= tracing::Level::DEBUG && LINES.with_borrow(Option::is_some)
        };
        let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_timer(Virtual).with_writer(|| Lines);
        let subscriber = tracing_subscriber::registry().with(lines.with_filter(DynFilterFn::new(collects)));
        tracing::subscriber::set_global_default(subscriber).unwrap();
    });
}

/// Runs and gives the log of all that this thread said meanwhile.
pub(crate) fn collect<T>(run: impl FnOnce() -> T) -> (T, String) {
    LINES.set(Some(Vec::new()));
    let outcome = run();
    let lines = LINES.take().unwrap_or_default();
    (outcome, String::from_utf8_lossy(&lines).into_owned())
}

/// Whose virtual time it is.
#[derive(Clone, Copy)]
pub(crate) enum Clock {
    None,
    /// Of a runtime whose clock is paused, from then on.
    Since(Instant),
    /// Of turmoil; between its steps, the time after the last.
    Network(Duration),
}

/// From here on this thread's time is that.
pub(crate) fn begin(clock: Clock) {
    install();
    CLOCK.set(clock);
}

/// Virtual time since the run began.
pub(crate) fn elapsed() -> Duration {
    match CLOCK.get() {
        Clock::None => Duration::ZERO,
        Clock::Since(begun) => begun.elapsed(),
        Clock::Network(last) => turmoil::sim_elapsed().unwrap_or(last),
    }
}

struct Lines;

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LINES.with_borrow_mut(|lines| lines.as_mut().map(|lines| lines.extend_from_slice(bytes)));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Virtual;

impl FormatTime for Virtual {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        write!(w, "{:>9.3}", elapsed().as_secs_f64())
    }
}
