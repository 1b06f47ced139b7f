//! `lifeboat-agent`: the program that runs on a protected server.

fn main() {}
