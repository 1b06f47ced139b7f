//! The programs under test, and ports for them.

use std::{io, net::TcpListener, path::PathBuf};

use crate::api_server::top;

/// What cargo has built beside this test, or what stands in the folder that `LIFEBOAT_PROGRAMS` names. Cargo builds
/// no other crate's program for a test: the suite does.
pub fn program(name: &str) -> PathBuf {
    if let Some(folder) = std::env::var_os("LIFEBOAT_PROGRAMS") {
        return PathBuf::from(folder).join(name);
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| top().join("target"), PathBuf::from);
    target.join("x86_64-unknown-linux-gnu/debug").join(name)
}

/// The newest build of another test, of any crate, as a program that runs on any Linux; `None`: it has not been built
/// (`cargo test --workspace --test NAME --no-run`, which the suite does).
pub fn test_program(name: &str) -> io::Result<Option<PathBuf>> {
    let mut newest = None;
    for entry in std::fs::read_dir(program("deps"))? {
        let path = entry?.path();
        let file = path.file_name().and_then(|file| file.to_str()).unwrap_or_default();
        let is_it = file.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
        if is_it.is_some_and(|hash| hash.chars().all(|sign| sign.is_ascii_hexdigit())) {
            newest = newest.max(Some((path.metadata()?.modified()?, path)));
        }
    }
    Ok(newest.map(|(_, path)| path))
}

/// Ports of loopback that are free now, all held until all are known.
pub fn free_ports<const N: usize>() -> io::Result<[u16; N]> {
    let mut held = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        *port = listener.local_addr()?.port();
        held.push(listener);
    }
    Ok(ports)
}
