//! Rights (PROTOCOL §9): the keys that everybody knows.

/// True for the public key of a sample user; those are accepted on loopback alone.
pub fn is_sample_key(_public: &str) -> bool {
    false
}
