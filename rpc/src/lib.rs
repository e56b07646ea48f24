//! How Lockstep's processes speak gRPC: one shape of errors, one trace through all calls, one set of limits.
//!
//! A server is a [`GrpcServer`]: services are added to it, and it serves them on a listener until it is told to stop,
//! with health checking and reflection beside them, bounded connections, streams and deadlines, and panics answered as
//! `INTERNAL`. A client gets its channel from [`connect_lazy`]; the [`TracedChannel`] goes into any generated client.
//! Between the two, each call carries the W3C trace context of the span it was made in, is one span on either side, and
//! is counted on either side.
//!
//! An error is an [`RpcProblem`] at both ends: its reason, metadata and whether the call may be repeated travel as
//! `google.rpc.ErrorInfo`. A call that was lost comes back as `UNAVAILABLE`, `CANCELLED` or `DEADLINE_EXCEEDED`: all
//! three mean that it may or may not have happened.
//!
//! A handler's future is dropped when its caller goes away or its deadline passes. What must not be half done (a
//! database transaction, a commit) belongs in a spawned future that the handler only waits for.
//!
//! Metrics, each labelled `service`, `method` and `code` (the name of a gRPC code):
//!
//! - `lockstep_rpc_server_requests_total`, `lockstep_rpc_server_duration_seconds`;
//! - `lockstep_rpc_client_requests_total`, `lockstep_rpc_client_duration_seconds`;
//! - without labels: `lockstep_rpc_server_connections`, `lockstep_rpc_server_connections_refused_total`.
//!
//! Durations of streams are those of the whole stream.
//!
//! Modules: `error` (the error on the wire), `server` (the stack) with `connections`, `deadline` and `panics`, `channel`
//! (clients), `trace` (layers for both sides) with `observation` (span and metrics of one call) and `carrier` (trace
//! context in headers).

mod carrier;
mod channel;
mod connections;
mod deadline;
mod error;
mod observation;
mod panics;
mod server;
mod trace;

pub use channel::{Carrier, ChannelOptions, TracedChannel, connect_lazy, parse_address, with_deadline};
pub use error::{ERROR_DOMAIN, Retryable, RpcProblem, code_name};
pub use server::{GrpcServer, ServeError, ServerOptions, listen};
pub use trace::{ClientTrace, ServerTrace, ServerTraceLayer};

/// The largest message either side encodes or decodes, 16 MiB. tonic limits neither the size of sent messages nor that
/// of all received ones: give this to `max_decoding_message_size` and `max_encoding_message_size` of every generated
/// client and server.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;
