//! Whatever stands at the STS's address: it notes what it is sent and answers bytes, over TLS or without; and a proxy.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::pki::Leaf;

/// What begins with it is no HTTP.
const TLS: u8 = 0x16;

/// One request: its head, and its body as it came.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Request {
    /// `POST /path HTTP/1.1`
    pub(crate) fn line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }
}

/// A listener; gone, with its connections, when dropped.
pub(crate) struct Stub {
    pub(crate) addr: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
    accepting: JoinSet<()>,
}

impl Stub {
    /// Frees the port.
    pub(crate) async fn close(mut self) {
        self.accepting.shutdown().await;
    }

    /// Answers `answer` to everything, byte for byte, and closes.
    pub(crate) async fn plain(answer: impl Into<String>) -> Self {
        Self::at("127.0.0.1:0", None, Does::Answer(answer.into())).await
    }

    /// The same over TLS.
    pub(crate) async fn tls(leaf: &Leaf, answer: impl Into<String>) -> Self {
        Self::at("127.0.0.1:0", Some(leaf), Does::Answer(answer.into())).await
    }

    /// Listens at `addr`.
    pub(crate) async fn at(addr: &str, leaf: Option<&Leaf>, does: Does) -> Self {
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (seen, does, tls) = (Arc::default(), Arc::new(does), leaf.map(acceptor));
        let notes = Arc::clone(&seen);
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (notes, does, tls) = (Arc::clone(&notes), Arc::clone(&does), tls.clone());
                connections.spawn(async move {
                    let _ = match tls {
                        None => serve(stream, &notes, &does).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => serve(stream, &notes, &does).await,
                            Err(err) => Err(err),
                        },
                    };
                });
            }
        });
        Self { addr, seen, accepting }
    }

    /// All that it was sent so far; the copy goes on counting.
    pub(crate) fn seen(&self) -> Arc<Mutex<Vec<Request>>> {
        Arc::clone(&self.seen)
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    /// The one request that there was.
    #[track_caller]
    pub(crate) fn only_request(&self) -> Request {
        let [request] = <[Request; 1]>::try_from(self.requests()).unwrap_or_else(|all| panic!("{all:?}"));
        request
    }
}

/// What becomes of a request.
pub(crate) enum Does {
    Answer(String),
    /// A CONNECT becomes a tunnel, to this address whatever was asked for; anything else is passed on to it.
    Proxy(SocketAddr),
    /// What is asked below the path goes to this address, without the path; nothing else does.
    Below(&'static str, SocketAddr),
    /// Takes it and says nothing.
    Hang,
}

async fn serve<S>(mut stream: S, notes: &Mutex<Vec<Request>>, does: &Does) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request = read(&mut stream).await?;
    let connect = request.line().starts_with("CONNECT ");
    notes.lock().unwrap().push(request.clone());
    match does {
        Does::Hang => std::future::pending().await,
        Does::Answer(answer) => {
            stream.write_all(answer.as_bytes()).await?;
            stream.shutdown().await
        }
        Does::Proxy(target) => {
            let mut server = TcpStream::connect(target).await?;
            if connect {
                stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
            } else {
                server.write_all(format!("{}{}", request.head, request.body).as_bytes()).await?;
            }
            copy_bidirectional(&mut stream, &mut server).await.map(drop)
        }
        Does::Below(path, target) => {
            let Some(below) = request.head.strip_prefix(&format!("POST {path}/")) else {
                return stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await;
            };
            let mut server = TcpStream::connect(target).await?;
            // One request a connection, since the next would go by unread.
            let head = format!("POST /{}", below.replacen("\r\n", "\r\nConnection: close\r\n", 1));
            server.write_all(format!("{head}{}", request.body).as_bytes()).await?;
            copy_bidirectional(&mut stream, &mut server).await.map(drop)
        }
    }
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Request> {
    let (mut bytes, mut chunk) = (Vec::new(), vec![0; 16 << 10]);
    loop {
        let read = stream.read(&mut chunk).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&chunk[..read]);
        if bytes[0] == TLS {
            return Ok(Request { head: "TLS".into(), body: String::new() });
        }
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4) else {
            continue;
        };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let lines = head.lines().map(str::to_ascii_lowercase);
        let length = lines.filter_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).next();
        if bytes.len() >= end + length.unwrap_or(0) {
            return Ok(Request { head, body: String::from_utf8_lossy(&bytes[end..]).into_owned() });
        }
    }
}

/// What serves that certificate.
pub(crate) fn acceptor(leaf: &Leaf) -> TlsAcceptor {
    let chain = CertificateDer::pem_file_iter(&leaf.cert).unwrap().collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_file(&leaf.key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}
