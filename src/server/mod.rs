//! Getting a `nats-server` (and the `nats` CLI for tests), and running one as a child process.
//!
//! [`fetch`] answers "where is a usable binary?": on the PATH, in the cache, or brought from outside
//! and checked against a pinned hash. [`run`] starts `nats-server` on a loopback port with a folder of
//! its own and makes sure that it ends with this process. Used by `edgeward up`, `edgeward demo` and
//! the tests; agent and hub never start a broker.
//!
//! This module speaks to the broker as a process only: it reads the greeting of the port to know that
//! it is ready and never becomes a client.

mod command;
pub mod fetch;
mod guard;
mod pins;
mod ready;
pub mod run;
mod settings;
mod version;
mod ways;

pub use fetch::{FetchError, Found, Origin, default_cache, nats_cli, nats_server};
pub use run::{Options, Port, RunError, Server};
pub use version::Version;
