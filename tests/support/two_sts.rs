//! One STS made of two, so that served keys were judged by both: our emulator, which checks tokens, signatures of sessions and trust
//! policies, and moto's, whose keys are good at moto's services and whose IAM enforces the policies of roles.
//!
//! AssumeRoleWithWebIdentity is asked of the emulator first. Its refusal is the answer; after its consent moto is asked the same, and
//! moto's keys are the answer. AssumeRole comes signed with moto's keys: the emulator is asked by the session, or by the user, that stands
//! behind them, and after its consent moto gets the call as it came. Everything else is moto's.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use aws_sdk_sts::config::{BehaviorVersion, Credentials, Region};
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::agent::keep_secret;
use crate::moto::Moto;

type Answer = Response<Full<Bytes>>;

/// The gate before the two.
pub(crate) struct TwoSts {
    emulator: String,
    moto: Arc<Moto>,
    client: Client<HttpConnector, Full<Bytes>>,
    /// By the access key id that moto gave out: who the emulator takes its holder for.
    behind: Mutex<HashMap<String, Credentials>>,
    /// One unsigned call at a time: moto counts those that it lets by.
    unsigned: tokio::sync::Mutex<()>,
}

impl TwoSts {
    /// `users` are IAM users' keys that both know.
    pub(crate) fn new(emulator: String, moto: Arc<Moto>, users: Vec<Credentials>) -> Arc<Self> {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let behind = users.into_iter().map(|user| (user.access_key_id().to_owned(), user)).collect();
        let (behind, unsigned) = (Mutex::new(behind), tokio::sync::Mutex::default());
        Arc::new(Self { emulator, moto, client, behind, unsigned })
    }

    /// Serves for as long as this process lives.
    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener, tls: Option<TlsAcceptor>) {
        while let Ok((stream, _)) = listener.accept().await {
            let (gate, tls) = (Arc::clone(&self), tls.clone());
            tokio::spawn(async move {
                match tls {
                    None => gate.connection(stream).await,
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            gate.connection(stream).await;
                        }
                    }
                }
            });
        }
    }

    async fn connection(self: Arc<Self>, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let service = service_fn(move |request: Request<Incoming>| {
            let gate = Arc::clone(&self);
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.expect("a whole request").to_bytes();
                Ok::<_, Infallible>(gate.answer(head, body).await)
            }
        });
        let _ =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }

    async fn answer(&self, head: Parts, body: Bytes) -> Answer {
        let action = form_urlencoded::parse(&body).find(|(name, _)| name == "Action");
        match action.as_ref().map(|(_, action)| &**action) {
            Some("AssumeRoleWithWebIdentity") => self.with_token(head, body).await,
            Some("AssumeRole") => self.with_keys(head, body).await,
            _ => self.pass(self.moto.address(), head, body).await,
        }
    }

    async fn with_token(&self, mut head: Parts, body: Bytes) -> Answer {
        let emulator: Uri = self.emulator.parse().expect("a URL");
        let emulator = emulator.authority().expect("an address").as_str().parse().expect("an address");
        let consent = self.pass(emulator, head.clone(), body.clone()).await;
        if !consent.status().is_success() {
            return consent;
        }
        // What is not signed names no region but in a host of amazonaws.com, and keys are of their region's partition.
        let host = format!("sts.{}.amazonaws.com", self.moto.region());
        head.headers.insert(HOST, host.parse().expect("a name"));
        let _one = self.unsigned.lock().await;
        // It blocks for a millisecond, and nobody else is on this thread.
        self.moto.unjudged_calls(1);
        let issued = self.pass(self.moto.address(), head, body).await;
        self.remember(text(consent).await, issued).await
    }

    async fn with_keys(&self, head: Parts, body: Bytes) -> Answer {
        let authorization =
            head.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or("");
        let mut scope = between(authorization, "Credential=", ",").unwrap_or("").split('/');
        let (key, region) = (scope.next().unwrap_or(""), scope.nth(1));
        // As AWS does; the two take any that the signature is good for.
        if region.is_some_and(|region| region != self.moto.region()) {
            return out_of_region();
        }
        let caller = self.behind.lock().expect("nobody panics").get(key).cloned();
        // Keys that neither has issued are moto's to refuse.
        let Some(caller) = caller else { return self.pass(self.moto.address(), head, body).await };
        let config = aws_sdk_sts::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(self.moto.region()))
            .endpoint_url(&self.emulator)
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .retry_config(aws_sdk_sts::config::retry::RetryConfig::disabled())
            .credentials_provider(caller)
            .build();
        // The fields as they came, whatever they are; the SDK does the signature.
        let form = body.clone();
        let consent = aws_sdk_sts::Client::from_conf(config)
            .assume_role()
            .role_arn("arn:aws:iam::123456789012:role/replaced")
            .role_session_name("replaced")
            .customize()
            .mutate_request(move |request| {
                request.headers_mut().insert(CONTENT_LENGTH.as_str(), form.len().to_string());
                *request.body_mut() = SdkBody::from(form.clone());
            })
            .send()
            .await;
        match consent {
            Ok(session) => {
                let session = session.credentials().expect("credentials");
                let session = Credentials::new(
                    session.access_key_id(),
                    session.secret_access_key(),
                    Some(session.session_token().to_owned()),
                    None,
                    "emulator",
                );
                let issued = self.pass(self.moto.address(), head, body).await;
                self.keep(session, issued).await
            }
            Err(refusal) => {
                let answer = refusal.raw_response().unwrap_or_else(|| panic!("the emulator: {refusal:?}"));
                let body = Bytes::copy_from_slice(answer.body().bytes().expect("read by the SDK"));
                let mut refusal = Response::new(Full::new(body));
                *refusal.status_mut() = answer.status().as_u16().try_into().expect("a status");
                refusal.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/xml"));
                refusal
            }
        }
    }

    /// The session in the emulator's consent is behind the keys that moto has issued.
    async fn remember(&self, consent: String, issued: Answer) -> Answer {
        let element = |name: &str| {
            let value = between(&consent, &format!("<{name}>"), &format!("</{name}>"));
            value.unwrap_or_else(|| panic!("no {name} from the emulator")).to_owned()
        };
        let (key, secret, token) =
            (element("AccessKeyId"), element("SecretAccessKey"), element("SessionToken"));
        self.keep(Credentials::new(key, secret, Some(token), None, "emulator"), issued).await
    }

    async fn keep(&self, session: Credentials, issued: Answer) -> Answer {
        let (head, body) = issued.into_parts();
        let body = body.collect().await.expect("it is in memory").to_bytes();
        let xml = String::from_utf8_lossy(&body);
        if let Some(key) = between(&xml, "<AccessKeyId>", "</AccessKeyId>") {
            self.behind.lock().expect("nobody panics").insert(key.to_owned(), session);
            for secret in ["SecretAccessKey", "SessionToken"] {
                let secret = between(&xml, &format!("<{secret}>"), &format!("</{secret}>"));
                keep_secret(secret.expect("moto gives all three"));
            }
        }
        Response::from_parts(head, Full::new(body.clone()))
    }

    /// The request as it came: moto's signatures cover its Host.
    async fn pass(&self, to: SocketAddr, mut head: Parts, body: Bytes) -> Answer {
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        head.uri = format!("http://{to}{path}").parse().expect("an address");
        let answer = self.client.request(Request::from_parts(head, Full::new(body))).await;
        let (head, body) = answer.unwrap_or_else(|err| panic!("{to}: {err}")).into_parts();
        Response::from_parts(head, Full::new(body.collect().await.expect("a whole answer").to_bytes()))
    }
}

fn out_of_region() -> Answer {
    let said = "<ErrorResponse><Error><Type>Sender</Type><Code>SignatureDoesNotMatch</Code>\
                <Message>Credential should be scoped to a valid region.</Message></Error></ErrorResponse>";
    let mut refusal = Response::new(Full::from(said));
    *refusal.status_mut() = StatusCode::FORBIDDEN;
    refusal.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/xml"));
    refusal
}

async fn text(answer: Answer) -> String {
    let body = answer.into_body().collect().await.expect("it is in memory").to_bytes();
    String::from_utf8_lossy(&body).into_owned()
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    text.split_once(before)?.1.split_once(after).map(|(value, _)| value)
}
