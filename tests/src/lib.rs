//! Integration tests against a real API server and a real blob store.
//!
//! The tests are in `tests/`; here is what they share. Nothing is skipped when it cannot run: it fails and says what is
//! missing.

pub mod api_server;
pub mod blob_store;
pub mod entra;
pub mod operator;
pub mod programs;
pub mod rig;
