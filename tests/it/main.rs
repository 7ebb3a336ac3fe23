//! Integration tests: real nats-servers, real processes. One module per subject.

mod hub;
