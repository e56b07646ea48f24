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

/// Tries everything on one method.
pub(crate) async fn try_method(channel: &Channel, method: &str, request: &str, good: &[u8]) -> BTreeMap<Kind, u32> {
    let mut came_to = BTreeMap::new();
    for case in cases(request, good) {
        let what = format!("{method}, {}", case.name);
        let answer = call(channel, method, Bytes::from(case.message)).await;
        *came_to.entry(check(&what, &answer)).or_insert(0) += 1;
    }
    let answer = call(channel, method, Bytes::from(vec![0; LARGEST + 1])).await;
    assert_eq!(check(&format!("{method}, oversize"), &answer), Kind::Transport);
    *came_to.entry(Kind::Transport).or_insert(0) += 1;
    came_to
}
