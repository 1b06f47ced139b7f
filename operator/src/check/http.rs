//! An HTTP/1.1 GET; only the status line of the answer is read.

use lifeboat_crds::check::HttpCheck;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{MAX_ANSWER, Miss, shown};

pub(super) async fn ask(address: &str, check: &HttpCheck) -> Result<String, Miss> {
    let HttpCheck { port, path, expected_statuses } = check;
    let mut stream = TcpStream::connect((address, *port)).await?;
    let host =
        if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") };
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: lifeboat-check\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.contains(&b'\n') {
        if stream.read_buf(&mut answer).await? == 0 || answer.len() >= MAX_ANSWER {
            break;
        }
    }
    if answer.is_empty() {
        return Err(Miss::Closed);
    }
    let status = status(&answer).ok_or_else(|| Miss::Other(shown(&answer)))?;
    let expected = if expected_statuses.is_empty() {
        (200..400).contains(&status)
    } else {
        expected_statuses.contains(&status)
    };
    if expected { Ok(format!("HTTP {status}")) } else { Err(Miss::Other(format!("HTTP {status}"))) }
}

/// `HTTP/1.1 200 OK`
fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\r' || *byte == b'\n').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/"))?;
    words.next()?.parse().ok()
}
