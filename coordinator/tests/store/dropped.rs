//! R12: callers that go away. What the driver alone does then, and that it can't happen here.
//!
//! No caller ever holds a database future: it stands in a task of its own from its first poll on, and the connection it works on goes back to the pool only
//! from that future's own end. So dropping a call, at whatever point, drops the waiting for it and nothing else.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use lockstep_coordinator::store::StoreOptions;
use lockstep_devkit::TestDatabase;
use sqlx::{Connection as _, Executor as _, PgConnection, postgres::PgPoolOptions};

use crate::{
    ground,
    lost_answers::{WRITES, given, times_it_happened},
    rig::{Rig, admitted, alice, push},
};

/// Drops a future once it was polled so often without coming to an end: a caller that goes away at that moment.
struct GoesAway<F> {
    call: Option<Pin<Box<F>>>,
    polls: u32,
}

impl<F: Future> Future for GoesAway<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.polls == 0 {
            self.call = None;
            return Poll::Ready(None);
        }
        self.polls -= 1;
        let call = self.call.as_mut().expect("polled after its end");
        match call.as_mut().poll(context) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending if self.polls == 0 => {
                self.call = None;
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

fn goes_away<F: Future>(call: F, polls: u32) -> GoesAway<F> {
    GoesAway { call: Some(Box::pin(call)), polls }
}

/// The trap itself, in sqlx 0.9.0: if this test fails one day the driver has mended it, and stack.md and the module `pool` may say so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_pool_loses_a_write_that_it_has_called_done_after_a_dropped_begin() {
    let database = TestDatabase::create().await.unwrap();
    let mut other = PgConnection::connect(database.url()).await.unwrap();
    other.execute("CREATE TABLE kept (attempt int)").await.unwrap();
    // Whether a given poll is the one that waits for the answer to BEGIN is the machine's choice, so each is tried many times.
    let mut dropped = 0;
    for attempt in 0..400 {
        let pool = PgPoolOptions::new().max_connections(1).connect(database.url()).await.unwrap();
        let polls = 1 + attempt as u32 % 8;
        if goes_away(pool.begin(), polls).await.is_none() {
            dropped += 1;
        }
        sqlx::query("INSERT INTO kept VALUES ($1)").bind(attempt).execute(&pool).await.unwrap();
        pool.close().await;
        let kept: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM kept WHERE attempt = $1)")
            .bind(attempt)
            .fetch_one(&mut other)
            .await
            .unwrap();
        if !kept {
            println!(
                "attempt {attempt}: a begin dropped at poll {polls} took the next write with it; {dropped} were dropped"
            );
            return;
        }
    }
    panic!("nothing was lost in 400 tries, {dropped} of them dropped a begin");
}

/// No server process of this database has a transaction open or works on one.
async fn quiet(rig: &Rig) {
    let mut sql = rig.sql().await;
    let waiting = async {
        loop {
            let busy: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM pg_stat_activity
                 WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend' AND state <> 'idle'",
            )
            .fetch_one(&mut sql)
            .await
            .unwrap();
            if busy == 0 {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("a transaction stayed open");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_write_whose_caller_goes_away_is_whole_or_nothing_and_the_next_ones_are_kept() {
    for (name, write, truth) in WRITES {
        // Two connections, so that the next calls get those of the dropped ones.
        let options = StoreOptions { max_connections: 2, ..StoreOptions::default() };
        let rig = Rig::new().await;
        let store = ground::connect_with(&rig.database, options).await;
        let given = given(rig, store).await;
        // It was asked, and nobody waits for what comes of it.
        goes_away(write(&given), 1).await;
        quiet(&given.rig).await;
        let happened = times_it_happened(&given, truth).await;
        assert!(happened <= 1, "{name}: {happened}");
        // Sixteen at once use every connection there is.
        let next = (0..16).map(|_| async { given.store.get_pipeline(&given.pipeline.id.into()).await });
        for row in futures::future::join_all(next).await {
            row.unwrap();
        }
        let last = given.rig.pipeline("last").await;
        let round = admitted(given.store.admit_push(push(&last), &alice()).await.unwrap()).round.id;
        let seen: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM rounds WHERE id = $1)")
            .bind(round.uuid())
            .fetch_one(&mut given.rig.sql().await)
            .await
            .unwrap();
        assert!(seen, "after {name}: called done and not there for others");
    }
}
