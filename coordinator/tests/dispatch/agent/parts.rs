//! What an agent writes into the bucket: real part manifests, or such as no sound agent would.

use bytes::Bytes;
use lockstep_bucket::MemoryBuckets;
use lockstep_devkit::s3::S3Admin;
use lockstep_proto::v1;
use lockstep_protocol::{
    digest::Digest,
    host::Layout,
    id::{Attempt, Fingerprint, Generation, Step},
    location::Location,
    manifest::{FileEntry, Inherited, ObjectEntry, PartDocument, PartManifest, RelativePath},
};

use super::script::Scripted;
use crate::rig::uuid;

/// Where agents write their parts: past whatever counts or loses requests.
#[derive(Clone)]
pub(crate) enum Behind {
    Memory(MemoryBuckets),
    Server(S3Admin),
}

impl Behind {
    fn write(&self, location: &Location, key: &str, bytes: &[u8]) {
        let (bucket, key) = (location.bucket(), location.full_key(key));
        match self {
            Self::Memory(buckets) => buckets.tamper(bucket, &key, Some(Bytes::copy_from_slice(bytes))),
            Self::Server(admin) => admin.put_raw(bucket, &key, bytes).unwrap(),
        }
    }

    fn read(&self, location: &Location, key: &str) -> Vec<u8> {
        let (bucket, key) = (location.bucket(), location.full_key(key));
        match self {
            Self::Memory(buckets) => buckets.read(bucket, &key).unwrap().to_vec(),
            Self::Server(admin) => admin.read(bucket, &key).unwrap(),
        }
    }
}

impl Scripted {
    /// Writes the part as an agent would: one data object, the manifest last.
    pub(super) fn write_part(&self, order: &v1::PushOrder, step: u64, strays: bool) -> v1::PushDone {
        let header = order.header.clone().unwrap_or_default();
        let slot = Layout::from_n_hosts(self.n_hosts).unwrap().slot(self.host_idx).unwrap();
        let mut part = PartManifest {
            pipeline: header.pipeline_id.parse().unwrap(),
            slot,
            generation: Generation::new(header.generation).unwrap(),
            round: header.round.parse().unwrap(),
            incarnation: header.incarnation.parse().unwrap(),
            attempt: Attempt::new(header.attempt).unwrap(),
            local_checkpoint: order.local_checkpoint.parse().unwrap(),
            step: Step::new(step).unwrap(),
            fingerprint: Some(order.fingerprint.parse::<Fingerprint>().unwrap()),
            processed_records: Some(10),
            store_meta: String::new(),
            objects: Vec::new(),
            files: Vec::new(),
            delta: None,
        };
        let own = header.own_location.unwrap_or_default();
        let location: Location = format!("s3://{}/{}", own.bucket, own.prefix).parse().unwrap();
        let key = part.attempt_path().data(0).to_string();
        part.objects = vec![ObjectEntry { key: key.clone(), size: 5 }];
        let file = |number| FileEntry {
            path: RelativePath::new(format!("state-{number:05}")).unwrap(),
            size: 5,
            blake3: Digest::of(b"state"),
            head: None,
            object: Some(0),
            offset: 0,
            length: 5,
        };
        part.files = (0..self.files).map(file).collect();
        match order.base_parts.iter().find(|base| base.host_idx == self.host_idx) {
            Some(base) if self.files > 1 && !strays => {
                let read = |key: &str| self.behind.read(&location, key);
                let document = PartDocument::parse(&base.key, &read(&base.key)).unwrap();
                let whole = document.resolve(|full| Ok(read(&full.key))).unwrap();
                part.objects.clone_from(&whole.objects);
                let name =
                    Inherited { key: base.key.clone(), length: base.length, blake3: base.blake3.parse().unwrap() };
                part.relate(&whole, name);
            }
            _ => self.behind.write(&location, &key, b"state"),
        }
        if strays {
            let other = PartManifest { round: uuid().parse().unwrap(), ..part.clone() };
            let (key, bytes) = (other.attempt_path().manifest().to_string(), other.encode());
            self.behind.write(&location, &key, &bytes);
            part.relate(&other, Inherited { key, length: bytes.len() as u64, blake3: Digest::of(&bytes) });
            assert!(part.delta.is_some());
        }
        let bytes = part.encode();
        let manifest = part.attempt_path().manifest().to_string();
        self.behind.write(&location, &manifest, &bytes);
        v1::PushDone {
            part: Some(v1::PartRef {
                host_idx: self.host_idx,
                key: manifest,
                length: bytes.len() as u64,
                blake3: Digest::of(&bytes).to_string(),
            }),
            local_checkpoint: order.local_checkpoint.clone(),
            step: order.step,
            fingerprint: order.fingerprint.clone(),
            files: self.files.into(),
            bytes: part.bytes(),
            bytes_uploaded: 5,
            processed_records: Some(10),
            elapsed: None,
        }
    }
}
