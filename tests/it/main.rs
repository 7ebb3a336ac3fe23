//! Integration tests: real processes, real nats-servers. One binary, one module per subject.

mod harness;
mod layering;
mod listed;
