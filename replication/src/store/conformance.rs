//! What every store must do, written once and run against the model and the real one.
