//! edgeward: a message-passing control plane on NATS JetStream.

pub mod server;
