//! The recorder behind the `metrics` macros.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::init::TelemetryError;

/// Upper bounds of histograms whose names end in `_seconds`: from a call on the same machine to a round that takes
/// half an hour.
const SECONDS: [f64; 17] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0];

/// Upper bounds of histograms whose names end in `_bytes`: 4 KiB to 256 GiB, each 8 times the one before.
const BYTES: [f64; 9] = [
    4096.0,
    32_768.0,
    262_144.0,
    2_097_152.0,
    16_777_216.0,
    134_217_728.0,
    1_073_741_824.0,
    34_359_738_368.0,
    274_877_906_944.0,
];

/// Recorded values are folded into buckets this often even if nobody scrapes; otherwise they pile up in memory.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

static INSTALLED: Mutex<Option<PrometheusHandle>> = Mutex::new(None);

/// A thread that folds recorded values, until it is dropped.
#[derive(Debug)]
pub(crate) struct Upkeep {
    _stop: Sender<()>,
}

impl Upkeep {
    fn start(handle: PrometheusHandle) -> Result<Self, TelemetryError> {
        let (stop, stopped) = mpsc::channel();
        std::thread::Builder::new()
            .name("lockstep-metrics".to_owned())
            .spawn(move || {
                while stopped.recv_timeout(UPKEEP_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                    handle.run_upkeep();
                }
            })
            .map_err(|source| TelemetryError::Thread { name: "lockstep-metrics", source })?;
        Ok(Self { _stop: stop })
    }
}

/// Installs the recorder once a process; later calls return the same handle and no second upkeep.
pub(crate) fn install() -> Result<(PrometheusHandle, Option<Upkeep>), TelemetryError> {
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handle) = installed.as_ref() {
        return Ok((handle.clone(), None));
    }
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
        .and_then(|builder| builder.set_buckets_for_metric(Matcher::Suffix("_bytes".to_owned()), &BYTES))
        .map_err(|error| TelemetryError::Metrics(error.to_string()))?;
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    if metrics::set_global_recorder(recorder).is_err() {
        // The program that embeds us has its own recorder, where our metrics go: ours stays empty.
        tracing::debug!("another metrics recorder is installed, /metrics will be empty");
    }
    let upkeep = Upkeep::start(handle.clone())?;
    *installed = Some(handle.clone());
    Ok((handle, Some(upkeep)))
}
