//! The whole system on a real cluster.
