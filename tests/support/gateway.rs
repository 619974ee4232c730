//! A gateway before the API server, on loopback and without TLS, that can hold back what watches say while every other call goes through.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use bytes::Bytes;
use futures_util::StreamExt;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Gone, with its connections, when dropped.
pub(crate) struct Gateway {
    pub(crate) port: u16,
    held: watch::Sender<bool>,
    _accepting: JoinSet<()>,
}

impl Gateway {
    /// Passes everything on to the API server of `config`, with the credentials that the caller sends.
    pub(crate) async fn start(mut config: kube::Config) -> Self {
        config.auth_info = kube::config::AuthInfo::default();
        let api = rolecall::cluster::client::client(&config).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let held = watch::Sender::new(false);
        let gate = held.subscribe();
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (api, gate) = (api.clone(), gate.clone());
                let service = service_fn(move |request| forward(api.clone(), gate.clone(), request));
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                connections.spawn(async { _ = connection.await });
            }
        });
        Self { port, held, _accepting: accepting }
    }

    /// From now on no watch says anything, or all that it has kept to itself. New watches are silent as well.
    pub(crate) fn hold_watches(&self, held: bool) {
        self.held.send_replace(held);
    }
}

async fn forward(
    api: kube::Client,
    gate: watch::Receiver<bool>,
    request: Request<Incoming>,
) -> Result<Response<UnsyncBoxBody<Bytes, kube::Error>>, kube::Error> {
    let watches = request.uri().query().is_some_and(|query| query.contains("watch="));
    let (mut head, body) = request.into_parts();
    // What belongs to this connection stays here.
    for name in [HOST, CONNECTION, TRANSFER_ENCODING, CONTENT_LENGTH] {
        head.headers.remove(name);
    }
    let body = body.collect().await.map_err(|error| kube::Error::Service(error.into()))?.to_bytes();
    let answer = api.send(Request::from_parts(head, body.into())).await?;
    Ok(answer.map(|body| {
        let chunks = body.into_data_stream().then(move |chunk| {
            let mut gate = gate.clone();
            async move {
                if watches {
                    let _ = gate.wait_for(|held| !held).await;
                }
                chunk.map(Frame::data)
            }
        });
        BodyExt::boxed_unsync(StreamBody::new(chunks))
    }))
}
