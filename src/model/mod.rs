//! The model: types, parsing and state machines. No I/O, no async, no knowledge of NATS clients or databases.

pub mod admit;
pub mod config;
pub mod directive;
pub mod error_event;
pub mod groups;
pub mod header;
pub mod id;
pub mod infile;
pub mod jitter;
pub mod lanes;
pub mod message;
pub mod name;
pub mod node;
pub mod output;
pub mod pattern;
pub mod policy;
pub mod process;
pub mod record;
pub mod rights;
pub mod selector;
pub mod settings;
pub mod state;
pub mod subject;
pub mod time;
