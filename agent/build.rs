//! Compiles the eBPF program with clang, so that the agent carries it inside.

use std::{env, path::PathBuf, process::Command};

const SOURCE: &str = "bpf/tracker.bpf.c";
const INCLUDED: &str = "bpf/bios.bpf.h";

/// Debian names the program after its version; 12 is the oldest that knows `preserve_access_index` and v3 atomics.
const CLANGS: [&str; 10] = [
    "clang", "clang-14", "clang-15", "clang-16", "clang-17", "clang-18", "clang-19", "clang-20", "clang-13",
    "clang-12",
];

fn main() -> Result<(), String> {
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-changed={INCLUDED}");
    println!("cargo::rerun-if-env-changed=CLANG");
    let object = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: build with cargo")?)
        .join("tracker.bpf.o");
    let chosen = env::var("CLANG").ok();
    let mut refused = String::new();
    for clang in chosen.iter().map(String::as_str).chain(CLANGS) {
        let output = Command::new(clang)
            .args(["-O2", "-g", "-Wall", "-Werror", "-target", "bpf", "-mcpu=v3", "-c", SOURCE, "-o"])
            .arg(&object)
            .output();
        match output {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => refused += &format!("{clang}: {}\n", String::from_utf8_lossy(&output.stderr)),
            Err(_) => {}
        }
    }
    if refused.is_empty() {
        Err("the eBPF program needs clang: apt-get install clang-14 (or set CLANG to its path)".to_owned())
    } else {
        Err(format!("no clang could compile {SOURCE} for the bpf target:\n{refused}"))
    }
}
