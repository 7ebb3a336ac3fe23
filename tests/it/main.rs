//! The integration tests: real processes, real nats-servers on free ports, each with its own folder.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod accounts;
mod cli;
mod deploy;
mod docs;
mod harness;
mod hub;
mod layering;
mod listed;
mod local;
mod nats_cli;
mod operator_cli;
mod rights;
