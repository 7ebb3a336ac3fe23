//! edgeward: a message-passing control plane on NATS JetStream.

pub mod agent;
pub mod broker;
pub mod cli;
pub mod exec;
pub mod hub;
pub mod journal;
pub mod killpoint;
pub mod methods;
pub mod model;
pub mod operator;
pub mod server;
