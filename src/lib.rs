//! edgeward: a message-passing control plane on NATS JetStream.

pub mod broker;
pub mod cli;
pub mod exec;
pub mod model;
pub mod operator;
pub mod server;
