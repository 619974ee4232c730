//! A client that sends bytes as they are given, from the source address that a test chooses.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::net::{IpAddr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// One answer, taken apart.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|err| panic!("{err}: {:?}", self.body))
    }

    pub(crate) fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or("no code").to_owned()
    }
}

/// A connection from `from` (any address of 127.0.0.0/8 is ours to use).
pub(crate) async fn connect(from: &str, to: SocketAddr) -> TcpStream {
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.unwrap();
    socket.bind(SocketAddr::new(from.parse::<IpAddr>().unwrap(), 0)).unwrap();
    socket.connect(to).await.unwrap()
}

/// What an SDK sends.
pub(crate) fn request(to: SocketAddr) -> String {
    format!("GET /v1/credentials HTTP/1.1\r\nHost: {to}\r\nAccept: application/json\r\n\r\n")
}

/// The next answer on `stream`; `None` if the peer closed it before one began.
pub(crate) async fn read(stream: &mut TcpStream) -> Option<Answer> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        match stream.read_u8().await {
            Ok(byte) => bytes.push(byte),
            Err(_) if bytes.is_empty() => return None,
            Err(err) => panic!("{err} in the head: {}", String::from_utf8_lossy(&bytes)),
        }
    };
    let head = String::from_utf8(bytes[..head_end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut answer = Answer { status, head, body: String::new() };
    let length = answer.header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    answer.body = String::from_utf8(body).unwrap();
    Some(answer)
}

/// Sends `request` on `stream` and reads the answer.
pub(crate) async fn ask(stream: &mut TcpStream, request: &str) -> Option<Answer> {
    let _ = stream.write_all(request.as_bytes()).await;
    read(stream).await
}

/// One request on a connection of its own.
pub(crate) async fn get(from: &str, to: SocketAddr, request: &str) -> Answer {
    ask(&mut connect(from, to).await, request).await.expect("an answer")
}
