//! Time in proportion to size: 16 times the input takes nowhere near 256 times as long.

use std::time::{Duration, Instant};

use lockstep_protocol::{
    digest::Digest,
    manifest::{FileEntry, ObjectEntry, PartManifest, RelativePath},
};

use crate::{sample, targets};

/// The fastest of a few tries: whatever else the machine does only makes it slower.
fn fastest(mut run: impl FnMut()) -> Duration {
    let tries = (0..7).map(|_| {
        let began = Instant::now();
        run();
        began.elapsed()
    });
    tries.min().unwrap()
}

fn grows_with_its_size(what: &str, input: impl Fn(usize) -> Vec<u8>, read: impl Fn(&[u8])) {
    let (small, large) = (input(1), input(16));
    let (small_took, large_took) = (fastest(|| read(&small)), fastest(|| read(&large)));
    println!("{what}: {} bytes in {small_took:?}, {} bytes in {large_took:?}", small.len(), large.len());
    assert!(
        large_took < 100 * small_took.max(Duration::from_micros(50)),
        "{what}: {} bytes took {small_took:?}, {} bytes {large_took:?}",
        small.len(),
        large.len()
    );
}

fn many_files(count: usize, name: impl Fn(usize) -> String) -> Vec<u8> {
    let mut part = sample::part();
    let path = part.attempt_path();
    part.objects = (0..count as u32).map(|n| ObjectEntry { key: path.data(n).to_string(), size: 10 }).collect();
    part.files = (0..count)
        .map(|n| FileEntry {
            path: RelativePath::new(name(n)).unwrap(),
            size: 10,
            blake3: Digest::of(b"x"),
            head: None,
            object: Some(n as u32),
            offset: 0,
            length: 10,
        })
        .collect();
    part.encode()
}

fn read_part(bytes: &[u8]) {
    let key = sample::part().attempt_path().manifest().to_string();
    PartManifest::parse(&key, bytes).unwrap();
}

#[test]
fn reading_takes_time_in_proportion_to_size() {
    grows_with_its_size("flat parts", |n| many_files(250 * n, |file| format!("{file:06}")), read_part);
    grows_with_its_size(
        "deep parts",
        |n| many_files(25 * n, |file| format!("{}{file:06}", "a/".repeat(200))),
        read_part,
    );
    let apart = |n: usize| many_files(25 * n, |file| format!("{file:06}/{}x", "a/".repeat(200)));
    grows_with_its_size("deep folders apart", apart, read_part);
    let common = |n: usize| many_files(25 * n, |file| format!("{}{file:06}", "aaaaaaaaaaaaaaa/".repeat(60)));
    grows_with_its_size("long common beginnings", common, read_part);
    // Backwards, so that each has to be put in its place.
    grows_with_its_size("unsorted parts", |n| many_files(250 * n, |file| format!("{:06}", 999_999 - file)), read_part);
    let path = |n: usize| "a/".repeat(95 * n).into_bytes();
    grows_with_its_size("paths", path, |bytes| drop(targets::path(bytes)));
    let spec = |n: usize| format!("name: {}", "x".repeat(10_000 * n)).into_bytes();
    grows_with_its_size("specs", spec, |bytes| drop(targets::spec(bytes)));
}
