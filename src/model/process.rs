//! What names one process of the host across agents.

/// Names one process within one boot of the host: a pid alone may be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Started {
    /// Process id.
    pub pid: u32,
    /// When the kernel started it, in clock ticks since boot (field 22 of `/proc/PID/stat`); 0
    /// where the system does not tell.
    pub start_time: u64,
}
