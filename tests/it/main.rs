//! The integration tests: real processes, real nats-servers on free ports, each with its own folder.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod cli;
mod cluster;
mod deploy;
mod docs;
mod harness;
mod hub;
mod hub_upkeep;
mod layering;
mod listed;
mod local;
mod rights;
mod twins;
