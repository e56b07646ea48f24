//! Where servers are known to differ, and tests that they really do: whoever relies on one of these rows learns when it no longer holds.

use aws_sdk_s3::{
    error::{ProvideErrorMetadata, SdkError},
    primitives::ByteStream,
    types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart},
};
use bytes::Bytes;
use lockstep_bucket::{CreateOutcome, Lookup};

use crate::ground::{Ground, Kind};

/// What S3 does, and some servers don't.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trap {
    /// CompleteMultipartUpload with `If-None-Match: *` on a key that is taken is 412.
    CreateOnlyCompletion,
    /// A stream with a signed trailer is taken.
    SignedTrailer,
    /// A body whose Content-MD5 is wrong is refused.
    WrongMd5,
    /// A body whose CRC-32 is wrong is refused.
    WrongCrc32,
    /// `If-Match` takes an ETag as it was given, in quotes.
    QuotedIfMatch,
    /// A wrong secret or unknown access key is refused.
    AnySecret,
}

/// Server, trap, and why we can live with it.
const DEVIATIONS: &[(Kind, Trap, &str)] = &[
    (
        Kind::Radosgw,
        Trap::CreateOnlyCompletion,
        "ceph 16 ignores the condition: so a commit is one PutObject, never a multipart",
    ),
    (
        Kind::Radosgw,
        Trap::SignedTrailer,
        "ceph 16 answers 400: so payloads go from memory or unsigned, with our own digest",
    ),
    (
        Kind::Radosgw,
        Trap::WrongCrc32,
        "ceph 16 does not know the checksum: so documents carry Content-MD5, and data is verified by its digest",
    ),
    (Kind::Radosgw, Trap::QuotedIfMatch, "ceph 16 wants it without quotes: so nothing of ours uses If-Match"),
    (Kind::Moto, Trap::WrongMd5, "moto does not look: it is a mock"),
    (Kind::Moto, Trap::WrongCrc32, "moto does not look: it is a mock"),
    (Kind::Moto, Trap::AnySecret, "moto takes any credentials: it is a mock"),
];

/// Server, check of `lockstep_bucket::conformance`, and why it fails there.
const FAILING_CHECKS: &[(Kind, &str, &str)] = &[(Kind::Moto, "a_wrong_secret_is_denied", "moto takes any credentials")];

/// An answer to a random operation that differs from the twin's.
#[derive(Debug)]
pub(crate) struct OtherAnswer {
    server: Kind,
    pub(crate) operation: &'static str,
    pub(crate) twin: &'static str,
    pub(crate) server_says: &'static str,
    /// Why we can live with it.
    #[expect(dead_code, reason = "shown by Debug")]
    why: &'static str,
}

const OTHER_ANSWERS: &[OtherAnswer] = &[
    OtherAnswer {
        server: Kind::Radosgw,
        operation: "complete",
        twin: "unknown: NotFound",
        server_says: "unknown: Unavailable",
        why: "of an upload that has ended, ceph 16 says 500 instead of NoSuchUpload: either way the caller looks at the object",
    },
    OtherAnswer {
        server: Kind::Moto,
        operation: "part",
        twin: "unknown: NotFound",
        server_says: "unknown: Unavailable",
        why: "of an upload that has ended, moto says 500 instead of NoSuchUpload: either way nothing is uploaded",
    },
    OtherAnswer {
        server: Kind::Moto,
        operation: "complete",
        twin: "unknown: NotFound",
        server_says: "unknown: Unavailable",
        why: "as for a part",
    },
];

pub(crate) fn answers(kind: Kind) -> impl Iterator<Item = &'static OtherAnswer> {
    OTHER_ANSWERS.iter().filter(move |answer| answer.server == kind)
}

pub(crate) fn deviates(kind: Kind, trap: Trap) -> bool {
    DEVIATIONS.iter().any(|(server, known, _)| (*server, *known) == (kind, trap))
}

pub(crate) fn failing_checks(kind: Kind) -> Vec<(&'static str, &'static str)> {
    FAILING_CHECKS.iter().filter(|(server, ..)| *server == kind).map(|(_, check, why)| (*check, *why)).collect()
}

/// What came of a request: its status, 200 for success.
fn status<T, E: ProvideErrorMetadata>(result: &Result<T, SdkError<E>>) -> (u16, String) {
    match result {
        Ok(_) => (200, String::new()),
        Err(error) => {
            let status = error.raw_response().map_or(0, |response| response.status().as_u16());
            (status, error.code().unwrap_or_default().to_owned())
        }
    }
}

/// Compares what came with what S3 answers, and with the table.
fn judge(ground: &Ground, trap: Trap, got: &(u16, String), proper: &[u16]) {
    let known = DEVIATIONS.iter().find(|(server, known, _)| (*server, *known) == (ground.kind, trap));
    match (proper.contains(&got.0), known) {
        (true, None) | (false, Some(_)) => {}
        (false, None) => panic!("{} answers {got:?} to {trap:?}, S3 {proper:?}", ground.kind),
        (true, Some((.., why))) => {
            panic!("{} answers {got:?} to {trap:?}, as S3; it was known that {why}", ground.kind)
        }
    }
}

pub(crate) async fn create_only_completion_of_a_multipart_upload(ground: Ground) {
    let (client, store) = (ground.client(), ground.store().await);
    assert_eq!(store.create("taken", Bytes::from_static(b"first")).await, CreateOutcome::Done);
    let upload = store.create_multipart("taken").await.unwrap();
    let part = store.upload_part("taken", &upload, 1, Bytes::from_static(b"second").into()).await.unwrap();
    let part = CompletedPart::builder().part_number(1).e_tag(part.etag).checksum_crc32(part.crc32).build();
    let complete = client
        .complete_multipart_upload()
        .bucket(crate::ground::BUCKET)
        .key(ground.full_key("taken"))
        .upload_id(upload.0)
        .multipart_upload(CompletedMultipartUpload::builder().parts(part).build());
    let result = complete.if_none_match("*").send().await;
    let got = status(&result);
    judge(&ground, Trap::CreateOnlyCompletion, &got, &[412]);
    let expected: &[u8] = if got.0 == 200 { b"second" } else { b"first" };
    assert_eq!(store.get("taken", 100).await, Lookup::Found(Bytes::from_static(expected)));
}

pub(crate) async fn a_stream_with_a_signed_trailer(ground: Ground) {
    // A file is read twice for a checksum in a header, so the SDK sends it as a stream with a trailer.
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, b"streamed").unwrap();
    let body = ByteStream::from_path(file.path()).await.unwrap();
    let put = ground.client().put_object().bucket(crate::ground::BUCKET).key(ground.full_key("streamed"));
    let put = put.checksum_algorithm(ChecksumAlgorithm::Crc32).body(body);
    let got = status(&put.send().await);
    judge(&ground, Trap::SignedTrailer, &got, &[200]);
    let expected = if got.0 == 200 { Lookup::Found(Bytes::from_static(b"streamed")) } else { Lookup::Absent };
    assert_eq!(ground.store().await.get("streamed", 1000).await, expected);
}

pub(crate) async fn a_body_with_a_wrong_content_md5(ground: Ground) {
    let put = ground.client().put_object().bucket(crate::ground::BUCKET).key(ground.full_key("damaged"));
    // Of the empty body.
    let put = put.content_md5("1B2M2Y8AsgTpgAmY7PhCfg==").body(ByteStream::from_static(b"damaged"));
    let got = status(&put.send().await);
    judge(&ground, Trap::WrongMd5, &got, &[400]);
    assert_eq!(ground.store().await.head("damaged").await == Lookup::Absent, got.0 != 200, "{got:?}");
}

pub(crate) async fn a_body_with_a_wrong_crc32(ground: Ground) {
    let put = ground.client().put_object().bucket(crate::ground::BUCKET).key(ground.full_key("damaged"));
    let put = put.checksum_crc32("AAAAAA==").body(ByteStream::from_static(b"damaged"));
    let got = status(&put.send().await);
    judge(&ground, Trap::WrongCrc32, &got, &[400]);
    assert_eq!(ground.store().await.head("damaged").await == Lookup::Absent, got.0 != 200, "{got:?}");
}

pub(crate) async fn if_match_with_an_etag_as_it_was_given(ground: Ground) {
    let client = ground.client();
    let put = || client.put_object().bucket(crate::ground::BUCKET).key(ground.full_key("matched"));
    let first = put().body(ByteStream::from_static(b"first")).send().await.unwrap();
    let etag = first.e_tag().unwrap();
    let got = status(&put().if_match(etag).body(ByteStream::from_static(b"second")).send().await);
    judge(&ground, Trap::QuotedIfMatch, &got, &[200]);
    let other = "\"00000000000000000000000000000000\"";
    let got = status(&put().if_match(other).body(ByteStream::from_static(b"third")).send().await);
    assert_eq!(got.0, 412, "{got:?}");
}
