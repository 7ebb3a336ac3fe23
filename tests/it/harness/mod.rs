//! What the tests stand on: brokers, processes, command lines, links, and waiting.
//!
//! Everything started here ends when the test does, also when it fails. Nothing here knows how edgeward works inside:
//! it starts binaries, publishes to subjects and reads records.

// A harness offers more than the subjects of one day use.
#![allow(dead_code, unused_imports)]

mod broker;
mod cli;
mod cluster;
mod disk;
mod fleet;
mod group;
mod light;
mod marks;
mod process;
mod proxy;
mod ship;
mod systemd;
mod tests;
mod wait;

pub use broker::{TestBroker, nats_server_binary, open_to};
pub use cli::{Cli, Said, nats_binary, path_with_nats};
pub use cluster::{Cluster, ELECTION};
pub use disk::SmallDisk;
pub use fleet::Fleet;
pub use group::Group;
pub use light::{Counts, LightNodes};
pub use marks::{Marks, gone, lines, pid};
pub use process::{Process, runner_of};
pub use proxy::{Link, Proxy};
pub use ship::Ship;
pub use systemd::Systemd;
pub use wait::{Look, SOON, wait_until};
