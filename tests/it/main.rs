//! The integration tests: real processes, real nats-servers on free ports, each with its own folder.

mod deploy;
mod rights;
