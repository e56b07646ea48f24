//! The explorer itself, on worlds whose answers are known. Worlds of the protocol stand beside it.

mod explorer;
mod planted_pull;
mod planted_push;
mod report;
mod rounds_pull;
mod rounds_push;
mod take_overs;
