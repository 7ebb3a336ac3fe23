//! Integration tests: real processes, real nats-servers. One binary, one module per subject.

// Helpers stand outside `#[test]` functions, where these are not allowed by `clippy.toml`; a test fails by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod docs;
mod harness;
mod layering;
mod listed;
