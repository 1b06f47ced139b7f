//! Pieces of JSON schema that derive macros cannot say.

use schemars::{Schema, SchemaGenerator, json_schema};

/// An object whose inside the API server does not look at.
pub(crate) fn opaque_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}
