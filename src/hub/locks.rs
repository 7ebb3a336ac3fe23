//! Locks by node: what is done to one node at a time by this hub. Other hubs know nothing of them; compare-and-set is what
//! keeps hubs from each other's way.

use crate::model::name::NodeName;
use std::hash::{BuildHasher, RandomState};
use tokio::sync::{Mutex, MutexGuard};

/// Nodes that can be locked at the same time; two of one name never are.
const SLOTS: usize = 64;

/// A fixed number of locks, shared by all names.
pub(super) struct Locks {
    slots: Vec<Mutex<()>>,
    hasher: RandomState,
}

impl Locks {
    pub(super) fn new() -> Locks {
        Locks { slots: (0..SLOTS).map(|_| Mutex::new(())).collect(), hasher: RandomState::new() }
    }

    /// Waits until nobody else has this node.
    pub(super) async fn lock(&self, node: &NodeName) -> MutexGuard<'_, ()> {
        let at = usize::try_from(self.hasher.hash_one(node)).unwrap_or(0) % SLOTS;
        self.slots[at].lock().await
    }
}
