//! Compiles the eBPF programs with clang, so that the agent carries them inside.

use std::{env, path::PathBuf, process::Command};

/// Name, and the instructions that it may use: v2 has no atomic operation but one, and refuses where another is needed.
const PROGRAMS: [(&str, &str); 2] = [("tracker", "-mcpu=v3"), ("bytes", "-mcpu=v2")];
const INCLUDED: [&str; 2] = ["bpf/bios.bpf.h", "bpf/shared.bpf.h"];

/// Debian names the program after its version; 12 is the oldest that knows `preserve_access_index` and v3 atomics.
const CLANGS: [&str; 10] = [
    "clang", "clang-14", "clang-15", "clang-16", "clang-17", "clang-18", "clang-19", "clang-20", "clang-13",
    "clang-12",
];

fn main() -> Result<(), String> {
    for file in INCLUDED {
        println!("cargo::rerun-if-changed={file}");
    }
    println!("cargo::rerun-if-env-changed=CLANG");
    PROGRAMS.into_iter().try_for_each(|(name, instructions)| compile(name, instructions))
}

fn compile(name: &str, instructions: &str) -> Result<(), String> {
    let source = format!("bpf/{name}.bpf.c");
    println!("cargo::rerun-if-changed={source}");
    let object = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: build with cargo")?)
        .join(format!("{name}.bpf.o"));
    let chosen = env::var("CLANG").ok();
    let mut refused = String::new();
    for clang in chosen.iter().map(String::as_str).chain(CLANGS) {
        let output = Command::new(clang)
            .args(["-O2", "-g", "-Wall", "-Werror", "-target", "bpf", instructions, "-c", &source, "-o"])
            .arg(&object)
            .output();
        match output {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => refused += &format!("{clang}: {}\n", String::from_utf8_lossy(&output.stderr)),
            Err(_) => {}
        }
    }
    if refused.is_empty() {
        Err("the eBPF programs need clang: apt-get install clang-14 (or set CLANG to its path)".to_owned())
    } else {
        Err(format!("no clang could compile {source} for the bpf target:\n{refused}"))
    }
}
