//! edgeward: a message-passing control plane on NATS JetStream.

pub mod broker;
pub mod exec;
pub mod methods;
pub mod model;
