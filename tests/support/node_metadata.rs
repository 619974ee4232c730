//! The node's instance metadata, version 2, beyond the uplink: what pods must not have.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::json;

use crate::net;
use crate::netns::Pod;

const METADATA: &str = "169.254.169.254:80";
/// What the node's own role would be worth to a pod.
pub const NODE_KEY: &str = "ASIATHENODESOWNROLE0";
/// The session token that it gives to everybody.
pub const TOKEN: &str = "a-token-of-the-real-service";

/// Its thread ends with the process.
pub struct Metadata {
    asked: Arc<Mutex<Vec<String>>>,
    hangs_up: Arc<AtomicBool>,
    throttles: Arc<AtomicBool>,
}

impl Metadata {
    /// Answers in the place that all beyond the uplink share.
    pub fn start(outside: &Pod) -> Self {
        let listener = net::listen(outside, METADATA.parse().unwrap());
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let hangs_up: Arc<AtomicBool> = Arc::default();
        let throttles: Arc<AtomicBool> = Arc::default();
        let (heads, silent, busy) = (Arc::clone(&asked), Arc::clone(&hangs_up), Arc::clone(&throttles));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if silent.load(Ordering::SeqCst) {
                    continue;
                }
                let (heads, busy) = (Arc::clone(&heads), Arc::clone(&busy));
                thread::spawn(move || while answer(stream.as_ref().unwrap(), &heads, &busy).is_some() {});
            }
        });
        Self { asked, hangs_up, throttles }
    }

    /// From now on, or no longer, new connections end without an answer.
    pub fn hang_up(&self, on: bool) {
        self.hangs_up.store(on, Ordering::SeqCst);
    }

    /// From now on, or no longer, every request is answered 503.
    pub fn throttle(&self, on: bool) {
        self.throttles.store(on, Ordering::SeqCst);
    }

    /// The heads of all requests so far.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

/// One request; `None` once the caller has gone.
fn answer(mut stream: &TcpStream, heads: &Mutex<Vec<String>>, busy: &AtomicBool) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.extend(byte);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    heads.lock().unwrap().push(head.clone());
    let path = head.split(' ').nth(1).unwrap_or_default();
    if busy.load(Ordering::SeqCst) {
        return write!(stream, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").ok();
    }
    let (status, body) = match path.trim_end_matches('/') {
        "/latest/api/token" => ("200 OK", TOKEN.to_owned()),
        "/latest/meta-data/mac" => ("200 OK", "02:00:00:00:00:01".to_owned()),
        "/latest/meta-data/iam/security-credentials" => ("200 OK", "node".to_owned()),
        "/latest/meta-data/iam/security-credentials/node" => {
            let document = json!({
                "Code": "Success", "Type": "AWS-HMAC", "LastUpdated": "2026-11-22T00:00:00Z",
                "AccessKeyId": NODE_KEY, "SecretAccessKey": "secret", "Token": "token",
                "Expiration": "2036-11-22T00:00:00Z",
            });
            ("200 OK", document.to_string())
        }
        _ => ("404 Not Found", String::new()),
    };
    let length = body.len();
    let ttl = "X-aws-ec2-metadata-token-ttl-seconds: 21600";
    write!(stream, "HTTP/1.1 {status}\r\n{ttl}\r\nContent-Length: {length}\r\n\r\n{body}").ok()
}
