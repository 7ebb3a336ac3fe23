//! The integration tests: real processes, real nats-servers on free ports, each with its own folder.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod accounts;
mod agent_life;
mod anchor;
mod bad_input;
mod cancel;
mod cgroup;
mod cli;
mod cluster;
mod deploy;
mod docs;
mod doctor;
mod faults;
mod full_disk;
mod groups;
mod harness;
mod hub;
mod hub_upkeep;
mod inmsg;
mod journal;
mod kernel;
mod lanes;
mod layering;
mod ledger;
mod listed;
mod local;
mod look;
mod nats_cli;
mod node_detail;
mod operator_cli;
mod operator_view;
mod output;
mod poison;
mod ps;
mod replay;
mod rights;
mod runner;
mod runs;
mod scale;
mod selectors;
mod sessions;
mod settings;
mod shown;
mod twins;
