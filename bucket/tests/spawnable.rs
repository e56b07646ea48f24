//! Effects run in spawned tasks (R12), so every future of this crate must be `Send`.

use std::sync::Arc;

use bytes::Bytes;
use lockstep_bucket::*;
use lockstep_protocol::{
    commit::{CommitDocument, CommitPart},
    fence::Fence,
    id::{Generation, RoundId, Seq},
};

fn send<T: Send>(_: T) {}

#[expect(dead_code, reason = "only compiled")]
#[expect(clippy::too_many_arguments, reason = "only compiled")]
fn every_future_is_send(
    store: Arc<dyn ObjectStore>,
    connector: AwsConnector,
    location: lockstep_protocol::location::Location,
    g: Generation,
    s: Seq,
    round: RoundId,
    fence: Fence,
    commit: CommitDocument,
    part: CommitPart,
) {
    let store = store.as_ref();
    send(find(store, Selector::Latest, Access::Own));
    send(latest(store, Access::Own));
    send(list_checkpoints(store, Access::Own, 1));
    send(acknowledge(store, g, s));
    send(put_decision(store, (g, s), Bytes::new(), round));
    send(read_decision(store, g, s));
    send(successor(store, g));
    send(claim_first(store, &fence));
    send(finish_base(store, g));
    send(owner(store));
    send(put_fence(store, &fence));
    send(probe(store));
    send(fetch_part(store, &part));
    send(verify_checkpoint(store, &commit, &|_| {}));
    send(connector.connect(&location));
    send(conformance::run(conformance::Subject { connector: &connector, location: &location, wrong_secret: None }));
}
