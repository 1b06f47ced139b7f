//! What the kernel says of a running program, and small requests to it.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use lifeboat_tests::rig::Program;

/// Processor time that the program has used, user and system.
pub fn cpu_time(program: &Program) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{}/stat", program.pid().unwrap())).unwrap();
    // The name may hold spaces: fields are counted after it.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = [11, 12].map(|field| fields[field].parse::<u64>().unwrap()).iter().sum();
    // USER_HZ is 100 on every Linux that has an ABI.
    Duration::from_millis(ticks * 10)
}

/// Resident memory in MiB: now and at its highest.
pub fn memory_mib(program: &Program) -> (f64, f64) {
    let status = fs::read_to_string(format!("/proc/{}/status", program.pid().unwrap())).unwrap();
    let kib = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap()
    };
    (kib("VmRSS:") / 1024.0, kib("VmHWM:") / 1024.0)
}

/// The answer's body.
pub fn http_get(authority: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(authority).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}
