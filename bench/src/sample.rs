//! What a run took, and what many runs took: medians.

use std::collections::BTreeMap;

use crate::plan::Case;

/// What the mover itself took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Cost {
    pub(crate) wall_s: f64,
    pub(crate) cpu_s: f64,
    /// Bytes.
    pub(crate) peak_rss: u64,
}

/// All that was counted in one run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sample {
    pub(crate) cost: Cost,
    pub(crate) requests: u64,
    /// PutObject and UploadPart.
    pub(crate) put_requests: u64,
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
    /// 0 for peers.
    pub(crate) coordinator_requests: u64,
    /// CPU seconds of the S3 server.
    pub(crate) server_cpu_s: f64,
    /// CPU seconds of the coordinator; 0 for peers.
    pub(crate) coordinator_cpu_s: f64,
    /// Bytes of files that the operation could not do without: changed, or missing.
    pub(crate) bytes_needed: u64,
}

/// Samples of each case, in the order of the cases.
#[derive(Debug, Default)]
pub(crate) struct Results {
    samples: BTreeMap<Case, Vec<Sample>>,
}

impl Results {
    pub(crate) fn add(&mut self, case: Case, sample: Sample) {
        self.samples.entry(case).or_default().push(sample);
    }

    /// The medians of each case.
    pub(crate) fn medians(&self) -> Vec<Medians> {
        self.samples.iter().filter_map(|(case, samples)| Medians::of(*case, samples)).collect()
    }
}

/// Of each figure by itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Medians {
    pub(crate) case: Case,
    pub(crate) runs: usize,
    pub(crate) sample: Sample,
    /// Shortest and longest wall time.
    pub(crate) wall_range: (f64, f64),
}

impl Medians {
    fn of(case: Case, samples: &[Sample]) -> Option<Self> {
        let seconds =
            |figure: fn(&Sample) -> f64| median(samples.iter().map(figure), f64::total_cmp, |a, b| (a + b) / 2.0);
        let number = |figure: fn(&Sample) -> u64| median(samples.iter().map(figure), u64::cmp, |a, b| a.midpoint(b));
        let walls = || samples.iter().map(|sample| sample.cost.wall_s);
        let sample = Sample {
            cost: Cost {
                wall_s: seconds(|sample| sample.cost.wall_s)?,
                cpu_s: seconds(|sample| sample.cost.cpu_s)?,
                peak_rss: number(|sample| sample.cost.peak_rss)?,
            },
            requests: number(|sample| sample.requests)?,
            put_requests: number(|sample| sample.put_requests)?,
            bytes_sent: number(|sample| sample.bytes_sent)?,
            bytes_received: number(|sample| sample.bytes_received)?,
            coordinator_requests: number(|sample| sample.coordinator_requests)?,
            server_cpu_s: seconds(|sample| sample.server_cpu_s)?,
            coordinator_cpu_s: seconds(|sample| sample.coordinator_cpu_s)?,
            bytes_needed: number(|sample| sample.bytes_needed)?,
        };
        let wall_range = (walls().fold(f64::INFINITY, f64::min), walls().fold(0.0, f64::max));
        Some(Self { case, runs: samples.len(), sample, wall_range })
    }
}

/// The middle one, or the mean of the two in the middle.
fn median<T: Copy>(
    values: impl Iterator<Item = T>,
    order: fn(&T, &T) -> std::cmp::Ordering,
    mean: fn(T, T) -> T,
) -> Option<T> {
    let mut values: Vec<T> = values.collect();
    values.sort_by(order);
    let upper = *values.get(values.len() / 2)?;
    if values.len() % 2 == 1 { Some(upper) } else { Some(mean(*values.get(values.len() / 2 - 1)?, upper)) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::plan::{DataSet, Operation, Tool};

    /// A sample of this wall time; the other figures are small and different.
    pub(crate) fn sample(wall_s: f64) -> Sample {
        Sample {
            cost: Cost { wall_s, cpu_s: wall_s / 2.0, peak_rss: 64 << 20 },
            requests: 5,
            put_requests: 3,
            bytes_sent: 1_000,
            bytes_received: 2_000,
            coordinator_requests: 4,
            server_cpu_s: 0.25,
            coordinator_cpu_s: 0.125,
            bytes_needed: 1_000,
        }
    }

    pub(crate) fn case(data_set: DataSet, operation: Operation, tool: Tool) -> Case {
        Case { data_set, operation, added_latency_ms: 0, tool }
    }

    #[test]
    fn the_median_is_the_middle_or_the_mean_of_the_two() {
        let of = |values: &[f64]| median(values.iter().copied(), f64::total_cmp, |a, b| (a + b) / 2.0);
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(of(&[4.0, 1.0, 2.0, 8.0]), Some(3.0));
    }

    #[test]
    fn figures_have_medians_of_their_own() {
        let mut results = Results::default();
        let case = case(DataSet::A, Operation::Push, Tool::Lockstep);
        for (wall_s, requests) in [(1.0, 9), (3.0, 1), (2.0, 5)] {
            results.add(case, Sample { requests, ..sample(wall_s) });
        }
        let medians = results.medians();
        assert_eq!(medians.len(), 1);
        assert_eq!((medians[0].sample.cost.wall_s, medians[0].sample.requests, medians[0].runs), (2.0, 5, 3));
        assert_eq!(medians[0].wall_range, (1.0, 3.0));
    }
}
