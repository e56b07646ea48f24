//! Further real S3 servers for the conformance tests.
