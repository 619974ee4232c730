//! The container-credential endpoint: its HTTP rules, its JSON.
//! <https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html>

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use secrecy::ExposeSecret;
use serde::Serialize;
use tokio::time::Instant;

use super::direct;
use super::front::Front;
use super::reply::{self, Refusal, RequestError};
use super::visitor::Visitor;
use crate::audit::Asked;
use crate::broker::Trail;
use crate::credentials::Credentials;
use crate::identity::Caller;
use crate::identity::authorization::Presented;
use crate::metrics;
use crate::role::{RoleName, RolePlan};

const METRIC: metrics::Endpoint = metrics::Endpoint::ContainerCredentials;
/// The path of a pod's default role; `/NAME` after it is for another one. Exact: a proxy in front that rewrites paths has no
/// business here.
pub const PATH: &str = "/v1/credentials";
/// The shortest read timeout of an SDK is 1.0 s (Java, C++, PHP, JS v2); the answer must be there before.
pub(crate) const HOLD: Duration = Duration::from_millis(900);

/// What all connections of one agent share.
pub struct Endpoint(Front);

impl Endpoint {
    /// The endpoint behind `front`.
    pub fn new(front: Front) -> Arc<Self> {
        Arc::new(Self(front))
    }

    /// Answers one request of `visitor`. The deadline runs from the end of its head.
    ///
    /// # Errors
    /// Never: a refusal is an answer.
    pub fn answer(
        &self,
        visitor: &Visitor,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<Full<Bytes>>, Infallible>> {
        let begun = Instant::now();
        // Checked and dropped before hyper reads on: a head that lives costs a new buffer of 8 KiB each time.
        let checked = self.check(&request);
        drop(request);
        self.checked(visitor, begun, checked)
    }

    async fn checked(
        &self,
        visitor: &Visitor,
        begun: Instant,
        checked: Result<(Option<RoleName>, Presented), RequestError>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let (front, caller) = (&self.0, visitor.caller());
        let mut trail = Trail::default();
        let deadline = begun + visitor.left_of(HOLD);
        let answer = match visitor.turn().await.and(checked) {
            Ok((role, presented)) => {
                trail.role = role;
                let served = front.broker.credentials(caller, &presented, deadline, &mut trail).await;
                served.map_err(Refusal::Broker)
            }
            Err(refused) => Err(Refusal::Request(refused)),
        };
        visitor.answered();
        let asked = Asked { endpoint: METRIC, begun, caller, trail: &trail };
        Ok(match answer {
            Ok(served) => {
                front.audit.granted(&asked, &served);
                reply::credentials(served.body.clone())
            }
            Err(refusal) => {
                let request_id = front.audit.refused(&asked, &refusal);
                reply::refusal(&refusal, &request_id, &front.instance)
            }
        })
    }

    /// The answer, as bytes, to a connection that is not even read.
    pub fn turned_away(&self, caller: &Caller, refusal: RequestError) -> Vec<u8> {
        let refusal = Refusal::Request(refusal);
        let asked = Asked { endpoint: METRIC, begun: Instant::now(), caller, trail: &Trail::default() };
        let request_id = self.0.audit.refused(&asked, &refusal);
        reply::unread(&refusal, &request_id, &self.0.instance)
    }

    /// The rules that need no identity. What Authorization holds is read here, and judged by [`crate::identity`].
    fn check<B>(&self, request: &Request<B>) -> Result<(Option<RoleName>, Presented), RequestError> {
        let authorization = direct::check(request, &self.0.hosts)?;
        let rest = request.uri().path().strip_prefix(PATH).ok_or(RequestError::NotFound)?;
        let role = match rest.strip_prefix('/').map(RoleName::parse) {
            None if rest.is_empty() => None,
            Some(Some(role)) => Some(role),
            _ => return Err(RequestError::NotFound),
        };
        if request.uri().query().is_some() {
            return Err(RequestError::NotFound);
        }
        if request.method() != Method::GET {
            return Err(RequestError::MethodNotAllowed);
        }
        Ok((role, authorization.map_or(Presented::Nothing, |value| Presented::new(value.as_bytes()))))
    }
}

/// The document that SDKs parse: strings, this case, whole seconds, `Z`.
pub fn document(credentials: &Credentials, plan: &RolePlan) -> Bytes {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Document<'a> {
        access_key_id: &'a str,
        secret_access_key: &'a str,
        token: &'a str,
        expiration: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        account_id: Option<&'a str>,
        role_arn: &'a str,
    }
    let document = Document {
        access_key_id: &credentials.access_key_id,
        secret_access_key: credentials.secret_access_key.expose_secret(),
        token: credentials.session_token.expose_secret(),
        // Cut to whole seconds: some SDKs read no fractions.
        expiration: format!("{:.0}", credentials.expiration),
        account_id: plan.role.account(),
        role_arn: plan.role.as_str(),
    };
    Bytes::from(serde_json::to_vec(&document).expect("strings always serialise"))
}
