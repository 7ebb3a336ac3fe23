//! edgeward: a message-passing control plane on NATS JetStream.

pub mod broker;
pub mod exec;
pub mod journal;
pub mod model;
pub mod server;
