//! Inputs that once found something, or that anybody would try first.

use crate::targets;

/// Ten lists of ten of the one before: 10 billion texts, if anybody wrote them out.
fn laughs() -> String {
    let mut yaml = "a: &a [lol,lol,lol,lol,lol,lol,lol,lol,lol,lol]\n".to_owned();
    for (before, name) in ('a'..'j').zip('b'..='j') {
        yaml.push_str(&format!("{name}: &{name} [{}]\n", vec![format!("*{before}"); 10].join(",")));
    }
    yaml
}

#[test]
fn a_spec_that_unfolds_without_end_is_refused_soon() {
    let began = std::time::Instant::now();
    assert_eq!(targets::spec(laughs().as_bytes()), Ok(false));
    assert_eq!(targets::spec("[".repeat(100_000).as_bytes()), Ok(false));
    assert_eq!(targets::spec("{a: ".repeat(100_000).as_bytes()), Ok(false));
    assert!(began.elapsed() < std::time::Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn documents_in_documents_without_end_are_refused_without_a_stack_overflow() {
    let deep = format!("{}{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
    assert_eq!(targets::part(deep.as_bytes()), Ok(false));
    let deep = format!("{{\"partitions\":{deep}}}");
    assert_eq!(targets::part(deep.as_bytes()), Ok(false));
}
