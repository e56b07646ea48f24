//! Generated code of package `lockstep.v1`, nothing else. The protos beside this crate are the reference for callers; generated types stop
//! at the `convert` module of the coordinator, the agent and the client.

/// Package `lockstep.v1`.
#[expect(unused_qualifications, clippy::allow_attributes, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("lockstep.v1");
}

/// Encoded `FileDescriptorSet` of the package, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/lockstep.v1.bin"));
