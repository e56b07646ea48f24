//! Digests as S3 wants them.

use aws_smithy_types::base64;
use bytes::Bytes;
use md5::{Digest as _, Md5};

use crate::payload::Payload;

/// For `Content-MD5`.
pub(super) fn md5(chunks: &[Bytes]) -> String {
    let mut digest = Md5::new();
    chunks.iter().for_each(|chunk| digest.update(chunk));
    base64::encode(digest.finalize())
}

/// CRC-32 as S3 wants it: big-endian, base64.
pub(crate) fn crc32(body: &Payload) -> String {
    base64::encode(body.crc32().to_be_bytes())
}

/// The ETag of a multipart object: MD5 over the MD5s of its parts, and their number. None where the parts' ETags are no MD5s.
pub(super) fn multipart_etag(etags: &[String]) -> Option<String> {
    let mut whole = Md5::new();
    for etag in etags {
        let digits = etag.trim_matches('"');
        if digits.len() != 32 || !digits.is_ascii() {
            return None;
        }
        for at in (0..32).step_by(2) {
            whole.update([u8::from_str_radix(digits.get(at..at + 2)?, 16).ok()?]);
        }
    }
    let digest: String = whole.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Some(format!("{digest}-{}", etags.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_etag_of_a_multipart_object_is_that_of_its_parts() {
        // As S3 gave it for one part of 5 MiB of the letter x.
        let parts = ["\"4f08eef4096726bff1125e1b1b734644\"".to_owned()];
        assert_eq!(multipart_etag(&parts).as_deref(), Some("9dc2b5968307ce171ec8a2a9251a60d9-1"));
        assert_eq!(multipart_etag(&["opaque".to_owned()]), None);
    }

    #[test]
    fn checksums_are_big_endian_base64() {
        // The check value of CRC-32: 0xcbf43926.
        assert_eq!(crc32(&Bytes::from_static(b"123456789").into()), base64::encode([0xcb, 0xf4, 0x39, 0x26]));
    }
}
