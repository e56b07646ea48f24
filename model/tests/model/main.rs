//! The explorer itself, on worlds whose answers are known. Worlds of the protocol stand beside it.

mod explorer;
mod planted_push;
mod report;
mod rounds_push;
mod take_overs;
