//! Two counters that may be raised up to a bound, one after the other's value was read.

use lockstep_model::explore::{Options, Outcome, World, explore};

/// Two processes add one to a shared number, reading and writing in separate steps.
#[derive(Clone, Hash)]
struct Adders {
    shared: u8,
    read: [Option<u8>; 2],
    done: [bool; 2],
    /// Whether a process may stop for ever between its two steps.
    may_die: bool,
    dead: [bool; 2],
    demand: u8,
}

#[derive(Clone, Debug)]
enum Step {
    Read(usize),
    Write(usize),
    Die(usize),
}

impl World for Adders {
    type Action = Step;

    fn actions(&self) -> Vec<Step> {
        (0..2)
            .filter(|&i| !self.done[i] && !self.dead[i])
            .flat_map(|i| {
                let next = if self.read[i].is_none() { Step::Read(i) } else { Step::Write(i) };
                [Some(next), self.may_die.then_some(Step::Die(i))].into_iter().flatten()
            })
            .collect()
    }

    fn after(&self, step: &Step) -> Self {
        let mut next = self.clone();
        match *step {
            Step::Read(i) => next.read[i] = Some(self.shared),
            Step::Write(i) => {
                next.shared = self.read[i].unwrap_or_default() + 1;
                next.done[i] = true;
            }
            Step::Die(i) => next.dead[i] = true,
        }
        next
    }

    fn check(&self) -> Result<(), String> {
        if self.done == [true, true] && self.shared < self.demand {
            return Err(format!("lost update: {}", self.shared));
        }
        Ok(())
    }

    fn is_goal(&self) -> bool {
        self.done == [true, true]
    }

    fn describe(&self) -> String {
        format!("shared {}", self.shared)
    }
}

const fn adders(may_die: bool, demand: u8) -> Adders {
    Adders { shared: 0, read: [None; 2], done: [false; 2], may_die, dead: [false; 2], demand }
}

#[test]
fn a_closed_world_is_counted_whole() {
    let report = explore(&adders(false, 1), &Options::default());
    assert_eq!(report.outcome, Outcome::Closed);
    // By hand: 13 states of (read, done) and the values they can have.
    assert_eq!((report.states, report.depth), (13, 4), "{report:?}");
}

#[test]
fn the_shortest_trace_to_a_violation_is_told() {
    let Outcome::Violation { what, trace } = explore(&adders(false, 2), &Options::default()).outcome else {
        panic!("the lost update was not found");
    };
    assert_eq!(what, "lost update: 1");
    assert_eq!(trace.lines().filter(|line| line.contains("Read") || line.contains("Write")).count(), 4, "{trace}");
}

#[test]
fn a_state_that_can_not_reach_the_goal_is_found() {
    let Outcome::Stuck { trace } = explore(&adders(true, 1), &Options::default()).outcome else {
        panic!("the dead process was not noticed");
    };
    assert_eq!(trace.lines().filter(|line| line.contains("Die")).count(), 1, "{trace}");
}

#[test]
fn a_world_beyond_the_bound_proves_nothing() {
    let report = explore(&adders(false, 1), &Options { max_states: 5, ..Options::default() });
    assert_eq!(report.outcome, Outcome::TooLarge);
}
