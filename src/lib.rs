//! edgeward: a message-passing control plane on NATS JetStream.

pub mod broker;
pub mod hub;
pub mod model;
