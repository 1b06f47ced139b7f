//! Seeded simulation of the data plane.
