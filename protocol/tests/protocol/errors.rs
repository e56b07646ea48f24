use std::collections::BTreeSet;

use lockstep_protocol::problem::{Code, Problem, Reason, Retryable};

#[test]
fn every_reason_has_one_text_and_is_found_by_it() {
    let texts: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    assert_eq!(texts.len(), Reason::ALL.len());
    for reason in Reason::ALL {
        assert_eq!(Reason::parse(reason.as_str()), Some(*reason));
        assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
    }
}

/// The rule of interfaces.md: ABORTED, UNAVAILABLE and RESOURCE_EXHAUSTED are retryable unless the table says otherwise, and it doesn't.
#[test]
fn aborted_unavailable_and_exhausted_may_be_retried() {
    for reason in Reason::ALL {
        if matches!(reason.code(), Code::Aborted | Code::Unavailable | Code::ResourceExhausted) {
            assert_eq!(reason.retryable(), Retryable::Yes, "{reason}");
        }
        if matches!(reason.code(), Code::InvalidArgument | Code::NotFound | Code::PermissionDenied) {
            assert_eq!(reason.retryable(), Retryable::AfterFix, "{reason}");
        }
    }
}

#[test]
fn a_problem_survives_its_row() {
    let problem =
        Problem::new(Reason::Integrity, "file a differs").with("expected", 1).with("found", 2).retry(Retryable::No);
    let stored = serde_json::to_string(&problem).unwrap();
    let back: Problem = serde_json::from_str(&stored).unwrap();
    assert_eq!(back, problem);
    assert_eq!(back.retryable(), Retryable::No);
}
