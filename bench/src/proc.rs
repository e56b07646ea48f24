//! What the kernel knows of a running process: CPU time and memory, from `/proc`.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// Ticks a second of the times in `/proc/<pid>/stat`: USER_HZ, which is 100 on every Linux that Rust runs on.
const TICK: Duration = Duration::from_millis(10);

/// User and system time of all its threads, dead ones included, in steps of 10 ms.
pub fn cpu(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    cpu_of(&text).with_context(|| format!("{path} looks strange: {text}"))
}

fn cpu_of(stat: &str) -> Option<Duration> {
    // The name is in parentheses and may hold anything, closing parentheses included.
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    Some(TICK * (user + system))
}

/// Forgets the greatest resident memory so far: it is what is resident now.
pub fn forget_peak(pid: u32) -> Result<()> {
    let path = format!("/proc/{pid}/clear_refs");
    fs::write(&path, "5").context(path)
}

/// Greatest resident memory since it was forgotten, in bytes.
pub fn peak(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    kib_of(&text, "VmHWM:").map(|kib| kib << 10).with_context(|| format!("{path} has no VmHWM"))
}

/// Resident memory now, in bytes.
pub fn resident(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    kib_of(&text, "VmRSS:").map(|kib| kib << 10).with_context(|| format!("{path} has no VmRSS"))
}

/// Files and sockets it has open now.
pub fn open_files(pid: u32) -> Result<usize> {
    let path = format!("/proc/{pid}/fd");
    Ok(fs::read_dir(&path).context(path)?.count())
}

/// Memory that can be had without swapping, in bytes.
pub fn available_memory() -> Result<u64> {
    let path = "/proc/meminfo";
    let text = fs::read_to_string(path).context(path)?;
    kib_of(&text, "MemAvailable:").map(|kib| kib << 10).context("/proc/meminfo has no MemAvailable")
}

fn kib_of(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_is_user_and_system_whatever_the_name() {
        let stat = "42 (a) b) R 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 1 0 5 6 7";
        assert_eq!(cpu_of(stat), Some(Duration::from_secs(3)));
        assert_eq!(cpu_of("42 (a) R 1 2"), None);
    }

    #[test]
    fn memory_is_read_from_its_line() {
        assert_eq!(kib_of("VmPeak:\t 9 kB\nVmHWM:\t  2048 kB\n", "VmHWM:"), Some(2048));
        assert_eq!(kib_of("VmHWM:\t  many kB\n", "VmHWM:"), None);
    }

    #[test]
    fn this_process_can_be_looked_at() {
        let me = std::process::id();
        cpu(me).unwrap();
        forget_peak(me).unwrap();
        assert!(peak(me).unwrap() > 1 << 20);
        assert!(resident(me).unwrap() > 1 << 20);
        assert!(open_files(me).unwrap() >= 3);
        assert!(available_memory().unwrap() > 0);
    }
}
