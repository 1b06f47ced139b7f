//! What is checked in is what the types say, and is of a shape that the API server and GitOps tools like.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::{collections::BTreeSet, fs, path::Path};

use lifeboat_crds::generate::{FOLDERS, definitions, files};
use serde_json::Value;

fn top() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn the_checked_in_files_are_what_the_types_say() {
    let wanted = files().unwrap();
    for file in &wanted {
        let found = fs::read_to_string(top().join(&file.path)).unwrap_or_default();
        assert!(
            found == file.content,
            "{} has drifted: run `cargo run -p lifeboat-crds --bin crdgen`",
            file.path
        );
    }
    let found: BTreeSet<String> = FOLDERS
        .iter()
        .flat_map(|folder| {
            fs::read_dir(top().join(folder))
                .unwrap()
                .map(move |entry| format!("{folder}/{}", entry.unwrap().file_name().display()))
        })
        .collect();
    assert_eq!(found, wanted.into_iter().map(|file| file.path).collect::<BTreeSet<_>>());
}

/// Calls `visit` with the path and the schema of every field.
fn walk(path: &str, schema: &Value, visit: &mut impl FnMut(&str, &Value)) {
    visit(path, schema);
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        walk(&format!("{path}.{name}"), property, visit);
    }
    for inner in ["items", "additionalProperties"] {
        if schema[inner].is_object() {
            walk(&format!("{path}[]"), &schema[inner], visit);
        }
    }
}

fn each_field(mut visit: impl FnMut(&str, &Value)) {
    for definition in definitions().unwrap() {
        let value = serde_json::to_value(&definition).unwrap();
        walk(
            &definition.spec.names.kind,
            &value["spec"]["versions"][0]["schema"]["openAPIV3Schema"],
            &mut visit,
        );
    }
}

/// Fields whose types are Kubernetes' own: their limits are Kubernetes' business.
fn is_foreign(path: &str) -> bool {
    const FOREIGN: [&str; 7] = [
        ".affinity",
        ".tolerations",
        ".topologySpreadConstraints",
        ".resources",
        ".env",
        ".conditions",
        ".nodeSelector",
    ];
    FOREIGN.iter().any(|name| path.contains(name))
}

/// Helm and kubectl read YAML 1.1, where these words are booleans: a definition that holds one in an enumeration allows
/// `"false"` instead, and every status that bears it is refused.
#[test]
fn no_value_is_a_boolean_to_those_who_read_the_yaml() {
    const BOOLEANS: [&str; 8] = ["y", "n", "yes", "no", "on", "off", "true", "false"];
    let mut seen = 0;
    each_field(|path, schema| {
        let values = schema["enum"].as_array().into_iter().flatten().chain(schema.get("default"));
        for value in values.filter_map(Value::as_str) {
            seen += 1;
            let is_boolean = BOOLEANS.contains(&value.to_lowercase().as_str());
            assert!(!is_boolean, "{path}: {value:?} has to be another word");
        }
    });
    assert!(seen > 50, "there was hardly anything to look at: {seen}");
}

#[test]
fn every_number_format_is_one_that_the_api_server_knows() {
    each_field(|path, schema| {
        if schema["type"] == "integer" {
            assert!(matches!(schema["format"].as_str(), None | Some("int32" | "int64")), "{path}: {schema}");
        }
    });
}

#[test]
fn nothing_is_nullable_so_that_a_null_gets_the_default() {
    each_field(|path, schema| assert!(schema.get("nullable").is_none(), "{path}"));
}

/// Without, the cost of rules is estimated for the largest object there can be, and is too high.
#[test]
fn every_list_and_text_of_a_spec_has_an_upper_bound() {
    each_field(|path, schema| {
        if !path.contains(".spec") || is_foreign(path) {
            return;
        }
        let bounded = match schema["type"].as_str() {
            Some("array") => schema["maxItems"].is_u64(),
            Some("string") => {
                schema["maxLength"].is_u64() || schema["enum"].is_array() || schema["format"] == "date-time"
            }
            _ => true,
        };
        assert!(bounded, "{path} has no upper bound: {schema}");
    });
}

/// Otherwise server-side apply replaces the whole list, and reordering shows as a difference in Git.
#[test]
fn every_list_says_how_it_is_merged() {
    each_field(|path, schema| {
        if schema["type"] == "array"
            && (!is_foreign(path) || path.ends_with(".env") || path.ends_with(".conditions"))
        {
            assert!(schema["x-kubernetes-list-type"].is_string(), "{path}: {schema}");
        }
    });
}

#[test]
fn every_rule_says_what_is_allowed() {
    each_field(|path, schema| {
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            assert!(rule["message"].as_str().is_some_and(|message| message.len() > 10), "{path}: {rule}");
        }
    });
}

#[test]
fn status_has_no_rules_since_only_the_operator_writes_it() {
    each_field(|path, schema| {
        if path.contains(".status") {
            assert!(schema.get("x-kubernetes-validations").is_none(), "{path}");
        }
    });
}

#[test]
fn every_kind_is_namespaced_in_the_category_with_a_short_name_columns_and_a_status() {
    let mut kinds = Vec::new();
    for definition in definitions().unwrap() {
        let spec = definition.spec;
        let version = &spec.versions[0];
        assert_eq!(spec.scope, "Namespaced", "{}", spec.names.kind);
        assert_eq!(spec.names.categories, Some(vec!["lifeboat".to_owned()]), "{}", spec.names.kind);
        assert!(spec.names.short_names.is_some_and(|names| names.len() == 1), "{}", spec.names.kind);
        assert!(version.subresources.as_ref().is_some_and(|sub| sub.status.is_some()), "{}", spec.names.kind);
        let columns = version.additional_printer_columns.as_ref().unwrap();
        assert_eq!(columns.last().unwrap().name, "Age", "{}", spec.names.kind);
        kinds.push(spec.names.kind);
    }
    assert_eq!(
        kinds,
        [
            "FailoverApproval",
            "FailoverRun",
            "ProtectedServer",
            "RecoveryPlan",
            "ReplicationAppliance",
            "ReplicationPolicy"
        ]
    );
}
