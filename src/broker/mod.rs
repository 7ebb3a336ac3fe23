//! The broker: everything that speaks to NATS. No other folder names the client library.
//!
//! Owns connections, publishing with its answer, reading without consumers, the streams, and a node's pull sessions.
//! Never decides what a message means.

mod access;
mod api;
mod connect;
mod consumers;
mod convert;
mod denied;
mod error;
mod feed;
mod publish;
mod publisher;
mod read;
mod session;
pub mod topology;
mod writes;

pub use access::{Access, without_password};
pub use connect::{Broker, ConnectOptions, Link};
pub use consumers::{Ensured, Progress};
pub use denied::Denials;
pub use error::{BrokerError, PublishError};
pub use feed::{Delivery, Feed};
pub use publish::{Outgoing, Parcel, Stored};
pub use publisher::{Publisher, Word};
pub use read::{Follower, From, LAST_SUBJECTS, Page, Query, RawMessage};
pub use session::{AnchorError, Anchors, Batch, Earlier, Found, Resume, Session, SessionError, Start};
pub use writes::{WriteDead, Writes, is_probe};
