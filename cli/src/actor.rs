//! Who runs this command.

/// `user@host`, in characters that fit a header.
pub(crate) fn default_name() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|user| user.name);
    let user = user.or_else(|| std::env::var("USER").ok());
    let host =
        ["/proc/sys/kernel/hostname", "/etc/hostname"].iter().find_map(|path| std::fs::read_to_string(path).ok());
    let host = host.or_else(|| std::env::var("HOSTNAME").ok());
    compose(user.as_deref().unwrap_or_default(), host.as_deref().unwrap_or_default())
}

fn compose(user: &str, host: &str) -> String {
    let clean = |text: &str, fallback: &str| {
        let text: String = text.trim().chars().map(|c| if c.is_ascii_graphic() { c } else { '_' }).collect();
        if text.is_empty() { fallback.to_owned() } else { text }
    };
    format!("{}@{}", clean(user, "unknown"), clean(host, "localhost"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_always_fits_a_header() {
        assert_eq!(compose("ada", "pod-7\n"), "ada@pod-7");
        assert_eq!(compose("zoë", ""), "zo_@localhost");
        assert_eq!(compose("", "h"), "unknown@h");
    }
}
