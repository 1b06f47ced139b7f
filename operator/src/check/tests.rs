use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;

/// Answers each connection with the next of `answers`; an empty one is silence.
async fn service(answers: Vec<&'static [u8]>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 512];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(answer).await;
        }
    });
    port
}

fn order(http: Option<HttpCheck>, tcp: Option<TcpCheck>) -> Order {
    Order { address: "127.0.0.1".into(), timeout_seconds: 8, http, tcp }
}

fn postgres(port: u16) -> Order {
    order(
        None,
        Some(TcpCheck {
            port,
            send_hex: Some("0000000804d2162f".into()),
            expect: "^[SN]".into(),
            ..TcpCheck::default()
        }),
    )
}

#[tokio::test]
async fn an_accepted_connection_that_is_closed_proves_nothing_and_the_service_itself_does() {
    let port = service(vec![b"", b"", b"N"]).await;
    assert_eq!(run(&postgres(port)).await.unwrap(), "N");
}

#[tokio::test]
async fn a_wrong_answer_is_shown_when_the_time_is_over() {
    let port = service(vec![b"SSH-2.0"; 20]).await;
    let mut ssh = postgres(port);
    ssh.tcp.as_mut().unwrap().expect = "^220 ".into();
    let error = run(&ssh).await.unwrap_err().to_string();
    assert!(error.contains("the last one: another answer than expected: SSH-2.0"), "{error}");
}

#[tokio::test]
async fn http_is_judged_by_its_status() {
    let port = service(vec![b"HTTP/1.1 503 Busy\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n"]).await;
    let check = HttpCheck { port, path: "/health".into(), expected_statuses: vec![] };
    assert_eq!(run(&order(Some(check), None)).await.unwrap(), "HTTP 204");
}

#[tokio::test]
async fn a_broken_expression_is_told_at_once() {
    let mut broken = postgres(1);
    broken.tcp.as_mut().unwrap().expect = "(".into();
    assert!(run(&broken).await.unwrap_err().to_string().contains("correct `expect`"));
}
