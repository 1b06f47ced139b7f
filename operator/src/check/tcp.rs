//! Connect, send if there is anything to send, and match what comes back.

use lifeboat_crds::check::TcpCheck;
use regex::bytes::Regex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{MAX_ANSWER, Miss, shown};

pub(super) async fn ask(address: &str, check: &TcpCheck, expect: &Regex) -> Result<String, Miss> {
    let mut stream = TcpStream::connect((address, check.port)).await?;
    let request = check.request();
    if !request.is_empty() {
        stream.write_all(&request).await?;
    }
    let mut answer = Vec::new();
    loop {
        let read = stream.read_buf(&mut answer).await?;
        if expect.is_match(&answer) && !answer.is_empty() {
            return Ok(shown(&answer));
        }
        if read == 0 {
            return Err(if answer.is_empty() { Miss::Closed } else { Miss::Other(shown(&answer)) });
        }
        if answer.len() >= MAX_ANSWER {
            return Err(Miss::Other(shown(&answer)));
        }
    }
}
