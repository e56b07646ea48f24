//! What every [`ObjectStore`] must do, as checks that run against any server: the twin in memory, the embedded one, radosgw, moto, AWS. Plain
//! library code: a test of a server that deviates compares the list of failed checks with the deviations it expects.

mod objects;
mod transfers;

use std::sync::Arc;

use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use lockstep_protocol::{
    location::{Location, RawLocation},
    problem::Problem,
};

use crate::{
    error::{StoreError, StoreErrorKind},
    store::{Connector, Lookup, ObjectStore, WriteOutcome},
};

/// What is to be tested.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Opens it.
    pub connector: &'a dyn Connector,
    /// An existing bucket, and a prefix that nothing else uses. Nothing is cleaned up.
    pub location: &'a Location,
    /// The same server with a wrong secret, if there is such a thing.
    pub wrong_secret: Option<&'a dyn Connector>,
}

/// What came of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckResult {
    /// What a store must do.
    pub name: &'static str,
    /// What it did instead.
    pub failure: Option<String>,
}

/// What a check works with: a location of its own.
struct Ground<'a> {
    subject: Subject<'a>,
    location: Location,
    store: Arc<dyn ObjectStore>,
}

type Check = for<'g> fn(&'g Ground<'g>) -> BoxFuture<'g, Result<(), String>>;

macro_rules! checks {
    ($($module:ident::$name:ident),* $(,)?) => {
        const CHECKS: &[(&str, Check)] = &[$((stringify!($name), |ground| $module::$name(ground).boxed()),)*];
    };
}

checks! {
    objects::a_created_object_is_read_back,
    objects::create_of_an_existing_key_changes_nothing,
    objects::a_race_of_creates_has_one_winner,
    objects::put_overwrites,
    objects::an_empty_object_is_an_object,
    objects::a_missing_key_is_proven_absent,
    objects::a_missing_bucket_is_never_absence,
    objects::a_wrong_secret_is_denied,
    objects::a_document_above_the_limit_is_not_read,
    objects::delete_removes_and_may_be_repeated,
    objects::a_batch_of_deletes_removes_what_it_names_and_nothing_else,
    objects::a_batch_for_a_missing_bucket_is_refused_key_by_key,
    objects::listings_are_whole_ordered_and_bounded,
    objects::more_than_one_thousand_keys_are_listed,
    objects::prefixes_end_where_they_end,
    objects::unusual_prefixes_work,
    transfers::ranges_are_exact,
    transfers::a_range_beyond_the_end_is_an_error,
    transfers::a_range_of_a_missing_key_is_not_found,
    transfers::large_bodies_arrive_whole,
    transfers::multipart_makes_one_object,
    transfers::a_completed_multipart_may_be_completed_again,
    transfers::an_aborted_multipart_leaves_nothing,
    transfers::open_multiparts_are_listed,
    transfers::multipart_with_a_wrong_part_is_refused,
}

/// Runs every check; each below a prefix of its own.
pub async fn run(subject: Subject<'_>) -> Vec<CheckResult> {
    let mut results = Vec::new();
    for &(name, check) in CHECKS {
        let failure = match Ground::of(subject, name).await {
            Ok(ground) => check(&ground).await.err(),
            Err(problem) => Some(problem.to_string()),
        };
        results.push(CheckResult { name, failure });
    }
    results
}

/// Names of the checks that failed, each with what happened.
pub fn failures(results: &[CheckResult]) -> Vec<String> {
    results.iter().filter_map(|r| r.failure.as_ref().map(|failure| format!("{}: {failure}", r.name))).collect()
}

impl<'a> Ground<'a> {
    async fn of(subject: Subject<'a>, name: &str) -> Result<Self, Problem> {
        let prefix = subject.location.full_key(name);
        let location = elsewhere(subject.location, |raw| raw.prefix = prefix)?;
        let store = subject.connector.connect(&location).await?;
        Ok(Self { subject, location, store })
    }

    async fn put(&self, key: &str, body: impl Into<Bytes> + Send) -> Result<(), String> {
        done(key, self.store.put(key, body.into().into()).await)
    }

    async fn must_hold(&self, key: &str, expected: &[u8]) -> Result<(), String> {
        match self.store.get(key, expected.len() + 1).await {
            Lookup::Found(found) if found == expected => Ok(()),
            Lookup::Found(found) => Err(format!("{key} holds {} other bytes", found.len())),
            other => Err(format!("{key} can't be read: {other:?}")),
        }
    }
}

fn elsewhere(location: &Location, change: impl FnOnce(&mut RawLocation)) -> Result<Location, Problem> {
    let mut raw = RawLocation::from(location.clone());
    change(&mut raw);
    Location::try_from(raw)
}

fn done(what: &str, outcome: WriteOutcome) -> Result<(), String> {
    outcome.done().map_err(|error| format!("{what}: {error}"))
}

fn ensure(condition: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(otherwise()) }
}

fn kind_is(expected: StoreErrorKind, error: &StoreError) -> Result<(), String> {
    ensure(error.kind == expected, || format!("expected {}, got {}: {error}", expected.as_str(), error.kind.as_str()))
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Bytes that differ at every offset that matters: a server that sends the wrong range is found out.
fn pattern(length: usize) -> Bytes {
    (0..length).map(|i| u8::try_from((i ^ (i >> 8) ^ (i >> 16)) & 0xff).unwrap_or(0)).collect()
}
