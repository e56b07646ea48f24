//! Page tokens of lists that are read from the bucket: opaque to callers, checked when they come back.

use lockstep_protocol::{
    id::{Generation, Seq},
    problem::{Problem, Reason},
};

/// The last commit of the page before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Cursor {
    pub(super) generation: Generation,
    pub(super) seq: Seq,
}

impl Cursor {
    pub(super) fn token(self) -> String {
        format!("c{:x}.{:x}", self.generation.get(), self.seq.get())
    }

    pub(super) fn parse(token: &str) -> Result<Self, Problem> {
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        token
            .strip_prefix('c')
            .and_then(|rest| rest.split_once('.'))
            .and_then(|(generation, seq)| {
                let cursor =
                    Self { generation: Generation::new(number(generation)?).ok()?, seq: Seq::new(number(seq)?).ok()? };
                // One position has one token.
                (cursor.token() == token).then_some(cursor)
            })
            .ok_or_else(|| {
                Problem::new(
                    Reason::SpecInvalid,
                    format!("page_token {token:?}: take next_page_token of the page before, unchanged"),
                )
                .with("field", "page_token")
                .with("value", token)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_and_an_edited_one_is_refused() {
        let cursor = Cursor { generation: Generation::FIRST, seq: Seq::new(310).unwrap() };
        assert_eq!(Cursor::parse(&cursor.token()), Ok(cursor));
        for edited in ["", "c", "c1", "c1.", "c01.136", "c1.136 ", "C1.136", "c1.ffffffffffffffff", "x"] {
            assert_eq!(Cursor::parse(edited).unwrap_err().metadata["field"], "page_token", "{edited}");
        }
    }
}
