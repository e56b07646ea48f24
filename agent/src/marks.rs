//! The highest order this host has accepted, per (pipeline UUID, own location): loaded at start, compared in memory, on disk before an
//! order is accepted (protocol.md, "Agent's rules").

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use lockstep_failpoint::{Point, reached};
use lockstep_protocol::{
    id::PipelineId,
    location::Location,
    order::{OrderHeader, OrderMark, PipelineSelector},
    problem::{Problem, Reason},
};
use serde::{Deserialize, Serialize};

use crate::durable;

const FILE: &str = "orders.json";

/// The format this version writes and the only one it reads.
const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: u32,
    orders: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    pipeline: PipelineId,
    /// Endpoint, bucket and prefix: what makes a location the same place.
    location: String,
    mark: OrderMark,
}

/// Highest accepted orders, in memory and on disk.
#[derive(Clone, Debug)]
pub(crate) struct Marks {
    path: PathBuf,
    known: BTreeMap<(PipelineId, String), OrderMark>,
}

pub(crate) fn place(location: &Location) -> String {
    format!("{}/{}/{}", location.endpoint().unwrap_or("aws"), location.bucket(), location.prefix())
}

impl Marks {
    /// Loads what an earlier process accepted. A file that can't be read is an error: without it an old order could be obeyed.
    pub(crate) fn load(state_dir: &Path) -> Result<Self, Problem> {
        let path = state_dir.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self { path, known: BTreeMap::new() }),
            Err(error) => return Err(durable::io_problem("read", &path, &error)),
        };
        let broken = |why: String| {
            Problem::new(
                Reason::LocalIo,
                format!("{} {why}: it holds the highest order accepted and can't be guessed; restore it, or remove it if no round is active", path.display()),
            )
            .with("path", path.display())
        };
        let document: Document =
            serde_json::from_slice(&bytes).map_err(|error| broken(format!("is not valid: {error}")))?;
        if document.format != FORMAT {
            return Err(broken(format!("has format {}, this version knows {FORMAT}", document.format)));
        }
        let known = document.orders.into_iter().map(|entry| ((entry.pipeline, entry.location), entry.mark)).collect();
        Ok(Self { path, known })
    }

    /// Highest accepted for the order's pipeline and own location.
    pub(crate) fn highest(&self, header: &OrderHeader) -> Option<OrderMark> {
        self.known.get(&(header.pipeline, place(&header.own_location))).copied()
    }

    /// For `Describe`: highest of the pipeline that the agent was started for.
    pub(crate) fn highest_of(&self, pipeline: &PipelineSelector) -> Option<OrderMark> {
        let fits = |id: &PipelineId| match pipeline {
            PipelineSelector::Id(own) => own == id,
            // The agent only ever accepts orders for its own pipeline, whatever its id.
            PipelineSelector::Name(_) => true,
        };
        self.known.iter().filter(|((id, _), _)| fits(id)).map(|(_, mark)| *mark).max()
    }

    /// Makes the order's mark durable if it is higher. Blocks. When it fails nothing has changed in memory.
    pub(crate) fn raise(&mut self, header: &OrderHeader) -> Result<(), Problem> {
        let mark = header.mark();
        if self.highest(header).is_some_and(|highest| highest >= mark) {
            return Ok(());
        }
        let mut next = self.known.clone();
        next.insert((header.pipeline, place(&header.own_location)), mark);
        let document = Document {
            format: FORMAT,
            orders: next
                .iter()
                .map(|((pipeline, location), mark)| Entry {
                    pipeline: *pipeline,
                    location: location.clone(),
                    mark: *mark,
                })
                .collect(),
        };
        let bytes = serde_json::to_vec_pretty(&document).map_err(|error| {
            Problem::new(Reason::LocalIo, format!("cannot write {}: {error}", self.path.display()))
                .with("path", self.path.display())
        })?;
        // The disk may have been emptied under a running agent; what it accepted is still known here and is written anew.
        let folder = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(|error| durable::io_problem("create", folder, &error))?;
        reached(Point::MarkBeforeStored);
        durable::replace(&self.path, &bytes).map_err(|error| durable::io_problem("write", &self.path, &error))?;
        reached(Point::MarkStored);
        self.known = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lockstep_protocol::{
        host::Slot,
        id::{Attempt, Generation, Incarnation, PipelineName, RoundId, RoundNo, Term},
        order::check_mark,
    };
    use uuid::Uuid;

    use super::*;

    fn header(pipeline: PipelineId, location: &str, generation: u64, round_no: u64, term: u64) -> OrderHeader {
        OrderHeader {
            pipeline,
            pipeline_name: PipelineName::new("orders").unwrap(),
            slot: Slot::Solo,
            incarnation: Incarnation::new(Uuid::new_v4()),
            generation: Generation::new(generation).unwrap(),
            round_no: RoundNo::new(round_no).unwrap(),
            term: Term::new(term).unwrap(),
            round: RoundId::new(Uuid::new_v4()),
            attempt: Attempt::FIRST,
            own_location: location.parse().unwrap(),
        }
    }

    #[test]
    fn an_accepted_order_outlives_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let pipeline = PipelineId::new(Uuid::new_v4());
        let accepted = header(pipeline, "s3://bucket/orders", 1, 7, 3);
        Marks::load(folder.path()).unwrap().raise(&accepted).unwrap();

        let marks = Marks::load(folder.path()).unwrap();
        assert_eq!(marks.highest(&accepted), Some(accepted.mark()));
        let late = header(pipeline, "s3://bucket/orders", 1, 6, 9);
        assert_eq!(check_mark(&late, marks.highest(&late)).unwrap_err().reason, Reason::StaleRound);
    }

    #[test]
    fn pipelines_and_locations_have_marks_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let pipeline = PipelineId::new(Uuid::new_v4());
        let mut marks = Marks::load(folder.path()).unwrap();
        marks.raise(&header(pipeline, "s3://bucket/orders", 4, 9, 1)).unwrap();
        assert_eq!(marks.highest(&header(pipeline, "s3://bucket/other", 1, 1, 1)), None);
        assert_eq!(marks.highest(&header(PipelineId::new(Uuid::new_v4()), "s3://bucket/orders", 1, 1, 1)), None);
    }

    #[test]
    fn a_lower_order_never_replaces_a_higher_one() {
        let folder = tempfile::tempdir().unwrap();
        let pipeline = PipelineId::new(Uuid::new_v4());
        let high = header(pipeline, "s3://bucket/orders", 2, 1, 1);
        let mut marks = Marks::load(folder.path()).unwrap();
        marks.raise(&high).unwrap();
        marks.raise(&header(pipeline, "s3://bucket/orders", 1, 8, 1)).unwrap();
        assert_eq!(Marks::load(folder.path()).unwrap().highest(&high), Some(high.mark()));
    }

    #[test]
    fn a_truncated_file_is_refused_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), b"{\"format\":1,\"ord").unwrap();
        let problem = Marks::load(folder.path()).unwrap_err();
        assert_eq!(problem.reason, Reason::LocalIo);
        assert!(problem.message.contains("orders.json"), "{problem}");
    }
}
