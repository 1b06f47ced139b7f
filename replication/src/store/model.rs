//! A store in memory with the same promises, for tests and the simulation.
