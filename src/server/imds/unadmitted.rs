//! A connection that is not let in, because its pod has too many or asks too often: what its one request is told.
//!
//! SDKs take a PUT that fails with 5xx for the end of version 2, or of their search. A token costs a signature and is kept nowhere, so
//! that is what a PUT gets here, too. Any other request is 503: who asks is not found out, which is what would cost something.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::{Ask, Endpoint, METRIC};
use crate::audit::Asked;
use crate::broker::Trail;
use crate::identity::Caller;
use crate::identity::evidence::Known;
use crate::server::reply::{self, Refusal, RequestError};

/// Seconds. SDKs ask for the next one when the header says that this one ends.
const UNPROVED: u64 = 60;

/// Such a connection, whose caller is its address and no more.
pub struct Unadmitted {
    endpoint: Arc<Endpoint>,
    caller: Caller,
    refusal: RequestError,
    answered: AtomicBool,
}

impl Unadmitted {
    /// A connection of `caller` that is not let in for this reason.
    pub fn new(endpoint: Arc<Endpoint>, caller: Caller, refusal: RequestError) -> Self {
        Self { endpoint, caller, refusal, answered: AtomicBool::new(false) }
    }

    /// Answers its request, the last one on it.
    ///
    /// # Errors
    /// Never: a refusal is an answer.
    pub async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let begun = Instant::now();
        self.answered.store(true, Ordering::Relaxed);
        let asked = Asked { endpoint: METRIC, begun, caller: &self.caller, trail: &Trail::default() };
        let answer = match self.token(&request) {
            Ok((token, ttl)) => {
                self.endpoint.front.audit.answered(&asked);
                reply::metadata_token(token, ttl)
            }
            Err(refusal) => {
                let request_id = self.endpoint.front.audit.refused(&asked, &refusal);
                reply::metadata_refusal(&refusal, &request_id, &self.endpoint.front.instance)
            }
        };
        Ok(reply::last(answer))
    }

    /// It has gone. If nobody could be answered, that counts as well.
    pub fn ended(self) {
        if !self.answered.into_inner() {
            let trail = Trail::default();
            let asked =
                Asked { endpoint: METRIC, begun: Instant::now(), caller: &self.caller, trail: &trail };
            self.endpoint.front.audit.refused(&asked, &Refusal::Request(self.refusal));
        }
    }

    /// The token that a PUT is for, by the caller's address: [`Endpoint`] takes such a one from whoever it finds there. Nobody has proved
    /// that the address is the caller's, so it is good only for the requests that follow at once.
    fn token(&self, request: &Request<Incoming>) -> Result<(String, u64), Refusal> {
        let question = self.endpoint.read(request)?;
        if question.method != Method::PUT {
            return Err(self.refusal.clone().into());
        }
        match question.ask()? {
            Ask::Token(ttl) => {
                let ttl = ttl.min(UNPROVED);
                Ok((self.endpoint.mint(&Known::Address(self.caller.address()), ttl), ttl))
            }
            Ask::Path(_) => Err(self.refusal.clone().into()),
        }
    }
}
