//! The log of a run: what production code and story say, each line with the virtual time. The same seed has the same log, byte for byte.

use std::{
    cell::{Cell, RefCell},
    fmt, io,
    sync::Once,
};

use tokio::time::Instant;
use tracing_subscriber::{
    Layer as _,
    filter::DynFilterFn,
    fmt::{format::Writer, time::FormatTime},
    layer::SubscriberExt as _,
};

thread_local! {
    static BEGUN: Cell<Option<Instant>> = const { Cell::new(None) };
    static LINES: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// One subscriber for the whole process, which hears only threads that collect: subscribers that come and go while other threads register what they say
/// can miss it.
fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let collects = |_: &tracing::Metadata<'_>, _: &tracing_subscriber::layer::Context<'_, _>| {
            LINES.with_borrow(Option::is_some)
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

/// Times count from here.
pub(crate) fn begin() {
    install();
    BEGUN.set(Some(Instant::now()));
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
        let seconds = BEGUN.get().map_or(0.0, |begun| begun.elapsed().as_secs_f64());
        write!(w, "{seconds:>9.3}")
    }
}
