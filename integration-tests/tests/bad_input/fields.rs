//! Everything that may be wrong with the fields of one method's request.

use std::collections::BTreeMap;

use bytes::Bytes;
use tonic::transport::Channel;

use crate::{
    answer::{Kind, check},
    call::call,
    cases::cases,
};

/// The largest message that is accepted.
const LARGEST: usize = 4 << 20;

/// Sees what calls have written.
pub(crate) trait Watch {
    /// All of it; equal, if nothing was written in between.
    async fn now(&self) -> String;

    /// Waits until what a call has set off is over.
    async fn settled(&self);
}

/// Nothing that a call writes is looked for.
pub(crate) struct Unwatched;

impl Watch for Unwatched {
    async fn now(&self) -> String {
        String::new()
    }

    async fn settled(&self) {}
}

/// Tries everything on one method. What is refused has written nothing.
pub(crate) async fn try_method(
    channel: &Channel,
    method: &str,
    request: &str,
    good: &[u8],
    watch: &impl Watch,
) -> BTreeMap<Kind, u32> {
    let mut came_to = BTreeMap::new();
    let mut before = watch.now().await;
    for case in cases(request, good) {
        let what = format!("{method}, {}", case.name);
        let answer = call(channel, method, Bytes::from(case.message)).await;
        let kind = check(&what, &answer);
        *came_to.entry(kind).or_insert(0) += 1;
        if kind == Kind::Accepted {
            watch.settled().await;
            before = watch.now().await;
        }
        assert_eq!(watch.now().await, before, "{what} was refused and has written something: {answer:?}");
    }
    let answer = call(channel, method, Bytes::from(vec![0; LARGEST + 1])).await;
    assert_eq!(check(&format!("{method}, oversize"), &answer), Kind::Transport);
    assert_eq!(watch.now().await, before, "{method}, oversize, has written something");
    *came_to.entry(Kind::Transport).or_insert(0) += 1;
    came_to
}
