//! Integration tests against a real API server and a real blob store.
