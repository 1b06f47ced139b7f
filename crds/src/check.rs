//! Checks that hear the service itself: a forwarded port accepts connections before the guest behind it listens,
//! so a bare connect proves nothing and cannot be expressed here.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How to hear that a server's service works. Exactly one of `http` and `tcp`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("has(self.http) != has(self.tcp)").message("choose exactly one of http and tcp"))]
#[serde(rename_all = "camelCase")]
pub struct HealthCheck {
    /// An HTTP GET.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpCheck>,
    /// Bytes sent and an answer expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpCheck>,
}

/// The probe inside a [`HealthCheck`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe<'a> {
    Http(&'a HttpCheck),
    Tcp(&'a TcpCheck),
}

impl HealthCheck {
    /// The one probe that is set; `None` only for an object that bypassed the API server's rules.
    pub fn probe(&self) -> Option<Probe<'_>> {
        match (&self.http, &self.tcp) {
            (Some(http), None) => Some(Probe::Http(http)),
            (None, Some(tcp)) => Some(Probe::Tcp(tcp)),
            _ => None,
        }
    }

    /// The guest's port that is asked.
    pub fn port(&self) -> Option<u16> {
        Some(match self.probe()? {
            Probe::Http(http) => http.port,
            Probe::Tcp(tcp) => tcp.port,
        })
    }
}

/// An HTTP GET that must be answered with the expected status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpCheck {
    /// Port of the server.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Path of the request.
    #[serde(default = "root_path")]
    #[schemars(length(max = 1024), regex(pattern = r"^/"))]
    pub path: String,
    /// Status codes that count as an answer; when absent, any from 200 to 399.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(range(min = 100, max = 599)), extend("x-kubernetes-list-type" = "set"))]
    pub expected_statuses: Vec<u16>,
}

fn root_path() -> String {
    "/".to_owned()
}

/// A TCP conversation: connect, send (if anything is to be sent), and match the first bytes of the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("!(has(self.sendText) && has(self.sendHex))").message("set at most one of sendText and sendHex"))]
#[serde(rename_all = "camelCase")]
pub struct TcpCheck {
    /// Port of the server.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Text to send after connecting, for protocols of lines: "QUIT\r\n".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub send_text: Option<String>,
    /// Bytes to send after connecting, in hexadecimal: 0000000804d2162f asks PostgreSQL whether it speaks TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 2048), regex(pattern = r"^([0-9a-fA-F]{2})+$"))]
    pub send_hex: Option<String>,
    /// Regular expression (Rust's `regex`, bytes, no Unicode) that the beginning of the answer must match: "^[SN]".
    #[schemars(length(min = 1, max = 256))]
    pub expect: String,
}

impl TcpCheck {
    /// The bytes to send: none for a service that greets first.
    pub fn request(&self) -> Vec<u8> {
        if let Some(text) = &self.send_text {
            return text.clone().into_bytes();
        }
        let digits: Vec<u32> =
            self.send_hex.iter().flat_map(|text| text.chars()).filter_map(|c| c.to_digit(16)).collect();
        // A digit is below 16, so a pair fits a byte.
        digits
            .chunks_exact(2)
            .map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | *digit as u8))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_becomes_the_bytes_on_the_wire() {
        let check = TcpCheck {
            port: 5432,
            send_hex: Some("0000000804D2162f".into()),
            expect: "^[SN]".into(),
            ..TcpCheck::default()
        };
        assert_eq!(check.request(), [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f]);
    }

    #[test]
    fn a_service_that_greets_first_is_sent_nothing() {
        let check = TcpCheck { port: 22, expect: "^SSH-2.0-".into(), ..TcpCheck::default() };
        assert!(check.request().is_empty());
    }
}
