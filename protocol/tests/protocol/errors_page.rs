//! docs/errors.md is the error table, and stays it.

use std::fmt::Write as _;

use lockstep_protocol::problem::Reason;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/errors.md");

fn page() -> String {
    let mut page = String::from(
        "# Errors\n\nEvery failed call is a `google.rpc.Status` with an `ErrorInfo` in domain `lockstep`: `reason` as below, `metadata` with every value that \
         the message shows, and `retryable`: `yes` (same call later), `after_fix` (something must change first, the message says what) or `no`. The same \
         values stand as `Problem` in rounds and participants, and in the database. A site that knows better may override `retryable`.\n\n\
         Generated from `protocol/src/problem.rs`: `LOCKSTEP_BLESS=1 cargo test -p lockstep-protocol --test protocol errors_page` writes it.\n\n\
         | reason | gRPC code | retryable |\n|---|---|---|\n",
    );
    for reason in Reason::ALL {
        let _ = writeln!(
            page,
            "| {} | {} | {} |",
            reason,
            screaming(&format!("{:?}", reason.code())),
            reason.retryable().as_str()
        );
    }
    page
}

/// `NotFound` to `NOT_FOUND`, as gRPC writes its codes.
fn screaming(camel: &str) -> String {
    let mut text = String::new();
    for (at, c) in camel.chars().enumerate() {
        if at > 0 && c.is_uppercase() {
            text.push('_');
        }
        text.push(c.to_ascii_uppercase());
    }
    text
}

#[test]
fn the_errors_page_is_the_table() {
    if std::env::var_os("LOCKSTEP_BLESS").is_some() {
        std::fs::write(PATH, page()).unwrap();
    }
    assert_eq!(std::fs::read_to_string(PATH).unwrap(), page());
}
