//! Integration tests: real nats-servers, real processes. One module per subject.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod hub;
