//! What is measured: names of data sets, operations and tools, as people type them.

use clap::ValueEnum;
use serde::Serialize;

/// What is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize)]
#[value(rename_all = "UPPER")]
pub(crate) enum DataSet {
    /// 64 files of 32 MiB
    A,
    /// 4,000 files of 64 KiB
    B,
    /// B with 1% of the files changed since the last push
    C,
    /// one file of 4 GiB
    D,
    /// a DBSP storage directory: real ones where there are any, and generated ones of many batches
    F,
}

impl DataSet {
    pub(crate) const ALL: [Self; 5] = [Self::A, Self::B, Self::C, Self::D, Self::F];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::B => "B",
            Self::C => "C",
            Self::D => "D",
            Self::F => "F",
        }
    }

    /// Whether this operation says something about this data set: C is about the push of what changed.
    pub(crate) fn takes(self, operation: Operation) -> bool {
        match self {
            Self::C => operation == Operation::Push,
            // One file: there is no tenth of it to lose.
            Self::D => operation != Operation::Repair,
            Self::A | Self::B | Self::F => true,
        }
    }
}

/// What is timed. They follow each other on one prefix in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Operation {
    /// to an empty prefix (C: the second push)
    Push,
    /// push again though no file has changed
    Nothing,
    /// to an empty directory
    Pull,
    /// pull after a tenth of the files were lost
    Repair,
}

impl Operation {
    pub(crate) const ALL: [Self; 4] = [Self::Push, Self::Nothing, Self::Pull, Self::Repair];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::Nothing => "nothing",
            Self::Pull => "pull",
            Self::Repair => "repair",
        }
    }
}

/// Who moves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Tool {
    /// a coordinator and one solo agent, as released
    Lockstep,
    /// s5cmd at its defaults
    S5cmd,
    /// s5cmd --numworkers 16
    #[value(name = "s5cmd-16")]
    #[serde(rename = "s5cmd-16")]
    S5cmd16,
    /// rclone at its defaults
    Rclone,
    /// rclone with 16 transfers and larger pieces
    RcloneTuned,
    /// aws s3 at its defaults
    Aws,
    /// a Python script over obstore, 16 files at a time
    Obstore,
    /// 16 curls in one process, presigned URLs: the floor
    Curl,
}

impl Tool {
    pub(crate) const ALL: [Self; 8] = [
        Self::Lockstep,
        Self::S5cmd,
        Self::S5cmd16,
        Self::Rclone,
        Self::RcloneTuned,
        Self::Aws,
        Self::Obstore,
        Self::Curl,
    ];

    /// Also its access key id at the server, so that requests are counted for each.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Lockstep => "lockstep",
            Self::S5cmd => "s5cmd",
            Self::S5cmd16 => "s5cmd-16",
            Self::Rclone => "rclone",
            Self::RcloneTuned => "rclone-tuned",
            Self::Aws => "aws",
            Self::Obstore => "obstore",
            Self::Curl => "curl",
        }
    }

    /// Whether it can compare two sides and move the difference.
    pub(crate) fn compares(self) -> bool {
        !matches!(self, Self::Obstore | Self::Curl)
    }

    /// Whether it counts as a peer to be ahead of; the floor does not.
    pub(crate) fn is_peer(self) -> bool {
        !matches!(self, Self::Lockstep | Self::Curl)
    }
}

/// One row of the results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Case {
    pub(crate) data_set: DataSet,
    pub(crate) operation: Operation,
    pub(crate) added_latency_ms: u64,
    pub(crate) tool: Tool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_is_typed() {
        for tool in Tool::ALL {
            assert_eq!(tool.to_possible_value().unwrap().get_name(), tool.name());
            assert_eq!(serde_json::to_value(tool).unwrap(), tool.name());
        }
        for operation in Operation::ALL {
            assert_eq!(operation.to_possible_value().unwrap().get_name(), operation.name());
            assert_eq!(serde_json::to_value(operation).unwrap(), operation.name());
        }
        for data_set in DataSet::ALL {
            assert_eq!(data_set.to_possible_value().unwrap().get_name(), data_set.name());
        }
    }
}
