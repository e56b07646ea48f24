//! Single objects.

use bytes::Bytes;
use futures::{TryStreamExt as _, future::join_all};
use lockstep_bucket::{CreateOutcome, Listed, Lookup, WriteOutcome};

use crate::ground::Ground;

const ODD: [&str; 7] = [
    "space d/a b",
    "ümläut/日本/🦀",
    "per%cent/%2F%20",
    "plus+and&equals=",
    "quote'd \"(1)\" ~!*",
    "back\\slash;semicolon:colon",
    "a/b.c/.d",
];

pub(crate) async fn odd_keys_come_back_as_they_were_written(ground: Ground) {
    let store = ground.store().await;
    for key in ODD {
        let body = Bytes::from(key.repeat(100));
        assert_eq!(store.create(key, body.clone()).await, CreateOutcome::Done, "{key}");
        assert_eq!(store.create(key, Bytes::from_static(b"second")).await, CreateOutcome::Exists, "{key}");
        assert_eq!(store.get(key, 1 << 20).await, Lookup::Found(body.clone()), "{key}");
        match store.head(key).await {
            Lookup::Found(meta) => assert_eq!(meta.size, size(&body), "{key}"),
            other => panic!("{key}: {other:?}"),
        }
        let chunks: Vec<Bytes> = store.get_range(key, 3, 5).await.unwrap().try_collect().await.unwrap();
        assert_eq!(chunks.concat(), body[3..8], "{key}");
    }
    let mut expected: Vec<Listed> =
        ODD.map(|key| Listed { key: key.to_owned(), size: size(&Bytes::from(key.repeat(100))) }).into();
    expected.sort_by(|a, b| a.key.cmp(&b.key));
    assert_eq!(store.list_all("").await.unwrap(), expected);
    for key in ODD {
        let found: Vec<String> = store.list_all(key).await.unwrap().into_iter().map(|listed| listed.key).collect();
        assert_eq!(found, [key]);
        assert_eq!(store.delete(key).await, WriteOutcome::Done, "{key}");
    }
    assert_eq!(store.list_all("").await.unwrap(), []);
}

fn size(body: &Bytes) -> u64 {
    u64::try_from(body.len()).unwrap()
}

pub(crate) async fn many_races_of_creates_have_one_winner_each(ground: Ground) {
    const RACERS: usize = 8;
    let store = ground.store().await;
    for race in 0..25 {
        let key = format!("race-{race}");
        // Bodies of different sizes reach the server at different times.
        let bodies: Vec<Bytes> =
            (0..RACERS).map(|racer| Bytes::from(format!("{racer}").repeat(1 + racer * 9000))).collect();
        let outcomes = join_all(bodies.iter().map(|body| store.create(&key, body.clone()))).await;
        let won = |outcome: &CreateOutcome| *outcome == CreateOutcome::Done;
        let winners: Vec<&Bytes> = bodies.iter().zip(&outcomes).filter(|(_, o)| won(o)).map(|(body, _)| body).collect();
        let [winner] = winners.as_slice() else { panic!("{} winners: {outcomes:?}", winners.len()) };
        assert_eq!(store.get(&key, 1 << 20).await.map(|found| found == *winner), Lookup::Found(true), "{key}");
    }
}

pub(crate) async fn an_upload_under_way_is_listed_until_it_is_given_up(ground: Ground) {
    let store = ground.store().await;
    let upload = store.create_multipart("data/whole").await.unwrap();
    store.upload_part("data/whole", &upload, 1, Bytes::from_static(b"part").into()).await.unwrap();
    let open = store.list_multipart("data/").await.unwrap();
    assert_eq!(
        open.iter().map(|open| (open.key.as_str(), &open.upload)).collect::<Vec<_>>(),
        [("data/whole", &upload)]
    );
    assert_eq!(store.list_multipart("data/other").await.unwrap(), []);
    assert_eq!(store.list_all("").await.unwrap(), [], "an open upload is no object");
    assert_eq!(store.abort_multipart("data/whole", &upload).await, WriteOutcome::Done);
    assert_eq!(
        store.abort_multipart("data/whole", &upload).await,
        WriteOutcome::Done,
        "the answer of the first was lost"
    );
    assert_eq!(store.list_multipart("").await.unwrap(), []);
    assert_eq!(store.head("data/whole").await, Lookup::Absent);
}
