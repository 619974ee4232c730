//! The proof that our own agent answers on an address: dial it, and compare the instance in the answer with what the agent's own socket says.
//!
//! Every answer of the container-credential endpoint to a path that it does not serve carries [`INSTANCE`]: a random word that the process
//! chose at its start. Another program on that address and port, or an agent that an upgrade left behind, does not know the word. It is no
//! secret: who may listen on a node's addresses could ask for it and repeat it, and has no need to.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::admin;
use crate::server::reply::INSTANCE;

/// For connect and answer together; the agent answers an unknown path from memory.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// What is wrong with an address.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// No connection.
    #[error("cannot connect: {0}; is the agent running, with --listen on this address?")]
    Unreachable(#[source] io::Error),
    /// Connected, but no answer in time: a packet filter, or a stuck listener.
    #[error("no answer within 2 s; does a packet filter drop it, or does something else hold the port?")]
    Silent,
    /// Connected, but it speaks something else.
    #[error("no HTTP answer ({0}); does something else hold the port?")]
    NotHttp(#[source] hyper::Error),
    /// HTTP, but not ours.
    #[error(
        "answered by something other than our agent (HTTP {status}, no {INSTANCE}): find it with `ss -ltnp`"
    )]
    Stranger {
        /// What it answered.
        status: u16,
    },
    /// Ours, but another process than the one behind the socket.
    #[error(
        "answered by another rolecall agent than the one at the local socket: is an old one still running?"
    )]
    AnotherInstance,
}

/// Why the agent's own socket does not say which instance it is.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// No connection to the socket.
    #[error("cannot ask the agent who it is at {}: {source}; is it running, with this --local-socket?", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It does not answer `/statusz` as an agent does.
    #[error("{} does not answer /statusz with an instance: {why}", path.display())]
    NoInstance {
        /// The socket.
        path: PathBuf,
        /// For people.
        why: String,
    },
}

/// The instance of the agent behind the Unix socket `path`.
///
/// # Errors
/// See [`LocalError`].
pub async fn instance(path: &Path) -> Result<String, LocalError> {
    #[derive(serde::Deserialize)]
    struct Status {
        instance: String,
    }
    // The socket lies in a directory that only the agent and root may enter: who answers here is the agent.
    let no_instance = |why: String| LocalError::NoInstance { path: path.to_owned(), why };
    let asked = admin::ask(path, "/statusz").await;
    let (_, body) = asked.map_err(|source| LocalError::Unreachable { path: path.to_owned(), source })?;
    let status: Status = serde_json::from_str(&body).map_err(|err| no_instance(err.to_string()))?;
    Ok(status.instance)
}

/// Dials each target and says whether the agent with `expected_instance` answers there. All at once: one silent address costs 2 s, not 2 s each.
pub async fn verify(targets: &[SocketAddr], expected_instance: &str) -> Vec<(SocketAddr, Result<(), Fault>)> {
    futures_util::future::join_all(targets.iter().map(|&target| async move {
        let answer = timeout(PATIENCE, dial(target, expected_instance)).await.unwrap_or(Err(Fault::Silent));
        (target, answer)
    }))
    .await
}

async fn dial(target: SocketAddr, expected_instance: &str) -> Result<(), Fault> {
    let stream = TcpStream::connect(target).await.map_err(Fault::Unreachable)?;
    let answer = get(stream, &target.to_string()).await.map_err(Fault::NotHttp)?;
    match answer.headers().get(INSTANCE) {
        Some(found) if found == expected_instance => Ok(()),
        Some(_) => Err(Fault::AnotherInstance),
        None => Err(Fault::Stranger { status: answer.status().as_u16() }),
    }
}

async fn get(stream: TcpStream, host: &str) -> Result<Response<Incoming>, hyper::Error> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the answer's body; its error is the request's error too.
    tokio::spawn(connection);
    let mut request = Request::new(Empty::<Bytes>::new());
    if let Ok(host) = host.parse() {
        request.headers_mut().insert(hyper::header::HOST, host);
    }
    sender.send_request(request).await
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn something_that_speaks_no_http_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        let other = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await.unwrap();
            stream
        };
        let (found, _stream) = tokio::join!(verify(std::slice::from_ref(&target), "the-word"), other);
        assert!(matches!(found[0].1, Err(Fault::NotHttp(_))), "{found:?}");
    }

    #[tokio::test]
    async fn an_address_that_never_answers_does_not_hold_us_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let found = verify(&[listener.local_addr().unwrap()], "the-word").await;
        assert!(matches!(found[0].1, Err(Fault::Silent)), "{found:?}");
    }
}
