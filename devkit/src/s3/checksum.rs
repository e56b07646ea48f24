//! Verifying what a client says about its bytes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use crc_fast::CrcAlgorithm;
use md5::{Digest as _, Md5};
use s3s::checksum::ChecksumHasher;
use s3s::crypto::{Checksum as _, Crc32, Crc32c, Crc64Nvme, Sha1, Sha256};
use uuid::Uuid;

use super::store::{Checksums, Part, StoreError};

/// The digests that are computed while a body comes in: MD5, if somebody asks for it or it is to be the ETag, and what the client asked for.
pub(crate) struct Hashers {
    md5: Option<Md5>,
    others: ChecksumHasher,
}

impl Hashers {
    /// `asked` are the algorithms, by the names of their headers without `x-amz-checksum-`.
    pub(crate) fn new<'a>(md5: bool, asked: impl IntoIterator<Item = &'a str>) -> Self {
        let mut others = ChecksumHasher::default();
        for algorithm in asked {
            match algorithm {
                "crc32" => others.crc32 = Some(Crc32::new()),
                "crc32c" => others.crc32c = Some(Crc32c::new()),
                "crc64nvme" => others.crc64nvme = Some(Crc64Nvme::new()),
                "sha1" => others.sha1 = Some(Sha1::new()),
                "sha256" => others.sha256 = Some(Sha256::new()),
                _ => {}
            }
        }
        Self { md5: md5.then(Md5::new), others }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        if let Some(md5) = &mut self.md5 {
            md5.update(bytes);
        }
        self.others.update(bytes);
    }

    pub(crate) fn finish(self) -> Digests {
        let others = self.others.finalize();
        Digests {
            md5: self.md5.map(|md5| md5.finalize().into()),
            checksums: Checksums {
                crc32: others.checksum_crc32,
                crc32c: others.checksum_crc32c,
                crc64nvme: others.checksum_crc64nvme,
                sha1: others.checksum_sha1,
                sha256: others.checksum_sha256,
            },
        }
    }
}

/// What the bytes that came in add up to.
#[derive(Debug, Clone)]
pub(crate) struct Digests {
    pub(crate) md5: Option<[u8; 16]>,
    pub(crate) checksums: Checksums,
}

impl Digests {
    /// Without quotes. One that is no MD5 doesn't look like one either: clients would compare it.
    pub(crate) fn etag(&self) -> String {
        self.md5.map_or_else(|| format!("{}-0", Uuid::new_v4().simple()), |md5| hex(&md5))
    }

    pub(crate) fn md5_base64(&self) -> Option<String> {
        self.md5.map(|md5| BASE64.encode(md5))
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    bytes.iter().flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]).collect()
}

/// No algorithm that both know differs.
pub(crate) fn agree(named: &Checksums, ours: &Checksums) -> bool {
    first_difference(named, ours).is_none()
}

/// The first checksum that was named and that we computed differently: (algorithm, named, computed).
pub(crate) fn first_difference<'a>(
    named: &'a Checksums,
    ours: &'a Checksums,
) -> Option<(&'static str, &'a str, &'a str)> {
    let pairs = [
        ("crc32", &named.crc32, &ours.crc32),
        ("crc32c", &named.crc32c, &ours.crc32c),
        ("crc64nvme", &named.crc64nvme, &ours.crc64nvme),
        ("sha1", &named.sha1, &ours.sha1),
        ("sha256", &named.sha256, &ours.sha256),
    ];
    pairs.into_iter().find_map(|(algorithm, named, ours)| match (named, ours) {
        (Some(named), Some(ours)) if named != ours => Some((algorithm, named.as_str(), ours.as_str())),
        _ => None,
    })
}

/// Checks the checksum of a whole multipart object against those of its parts. `<base64>-<n>` is a checksum over the
/// parts' checksums, anything else one over all bytes, which only CRCs can be combined to.
pub(crate) fn check_whole(parts: &[Part], whole: &Checksums) -> Result<(), StoreError> {
    type Pick = fn(&Checksums) -> &Option<String>;
    type Digest = fn(&[u8]) -> Vec<u8>;
    let algorithms: [(Pick, Digest, Option<CrcAlgorithm>); 5] = [
        (|sums| &sums.crc32, |bytes| Crc32::checksum(bytes).to_vec(), Some(CrcAlgorithm::Crc32IsoHdlc)),
        (|sums| &sums.crc32c, |bytes| Crc32c::checksum(bytes).to_vec(), Some(CrcAlgorithm::Crc32Iscsi)),
        (|sums| &sums.crc64nvme, |bytes| Crc64Nvme::checksum(bytes).to_vec(), Some(CrcAlgorithm::Crc64Nvme)),
        (|sums| &sums.sha1, |bytes| AsRef::<[u8]>::as_ref(&Sha1::checksum(bytes)).to_vec(), None),
        (|sums| &sums.sha256, |bytes| AsRef::<[u8]>::as_ref(&Sha256::checksum(bytes)).to_vec(), None),
    ];
    for (pick, digest, crc) in algorithms {
        let Some(expected) = pick(whole) else { continue };
        let sums: Option<Vec<Vec<u8>>> =
            parts.iter().map(|part| BASE64.decode(pick(&part.checksums).as_ref()?).ok()).collect();
        let found = match (sums, crc) {
            (Some(sums), _) if expected.contains('-') => {
                format!("{}-{}", BASE64.encode(digest(&sums.concat())), parts.len())
            }
            (Some(sums), Some(crc)) => BASE64.encode(combine(crc, &sums, parts)),
            _ => "nothing to compare with: the parts came without this checksum".to_owned(),
        };
        if *expected != found {
            return Err(StoreError::BadDigest { expected: expected.clone(), found });
        }
    }
    Ok(())
}

fn combine(crc: CrcAlgorithm, sums: &[Vec<u8>], parts: &[Part]) -> Vec<u8> {
    let width = sums.first().map_or(4, Vec::len);
    let number = |bytes: &[u8]| bytes.iter().fold(0_u64, |value, byte| (value << 8) | u64::from(*byte));
    let mut pairs = sums.iter().zip(parts);
    let first = pairs.next().map_or(0, |(sum, _)| number(sum));
    let all = pairs.fold(first, |all, (sum, part)| crc_fast::checksum_combine(crc, all, number(sum), part.size()));
    all.to_be_bytes()[8 - width.min(8)..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(sum: &str) -> Part {
        let checksums = Checksums { crc32: Some(sum.to_owned()), ..Checksums::default() };
        Part { blob: None, etag: String::new(), modified_ms: 0, checksums }
    }

    #[test]
    fn whole_checksum_of_the_parts_checksums_is_verified() {
        let parts = [part(&BASE64.encode([1, 2, 3, 4])), part(&BASE64.encode([5, 6, 7, 8]))];
        let right = format!("{}-2", BASE64.encode(Crc32::checksum(&[1, 2, 3, 4, 5, 6, 7, 8])));
        let whole = |sum: &str| Checksums { crc32: Some(sum.to_owned()), ..Checksums::default() };
        assert!(check_whole(&parts, &whole(&right)).is_ok());
        assert!(check_whole(&parts, &whole("AAAAAA==-2")).is_err());
    }

    #[test]
    fn whole_checksum_without_checksums_of_the_parts_is_refused() {
        let parts = [part(&BASE64.encode([1, 2, 3, 4]))];
        let whole = Checksums { sha256: Some("x".to_owned()), ..Checksums::default() };
        assert!(check_whole(&parts, &whole).is_err());
    }

    #[test]
    fn hex_is_lower_case_with_leading_zeros() {
        assert_eq!(hex(&[0x00, 0x0f, 0xa0]), "000fa0");
    }
}
