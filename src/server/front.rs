//! What every endpoint has before its own rules: the path behind it, the addresses that it answers to, the log of what it answers.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::HeaderValue;
use tokio::time::Instant;

use super::reply::{Refusal, RequestError};
use crate::audit::{Asked, Audit};
use crate::broker::{Broker, Trail};
use crate::identity::Caller;
use crate::metrics;

/// Shared by all connections of an endpoint.
pub struct Front {
    /// Who has which credentials.
    pub(super) broker: Arc<Broker>,
    /// Where each answer is counted.
    pub(super) audit: Arc<Audit>,
    /// The addresses that a request may name in Host.
    pub(super) hosts: Vec<IpAddr>,
    /// `x-rolecall-instance` of refusals.
    pub(super) instance: HeaderValue,
}

impl Front {
    /// Of an endpoint that answers to the addresses of `listeners`.
    pub fn new(broker: Arc<Broker>, audit: Arc<Audit>, listeners: &[SocketAddr], instance: &str) -> Self {
        Self {
            broker,
            audit,
            hosts: listeners.iter().map(SocketAddr::ip).collect(),
            instance: HeaderValue::from_str(instance).expect("an instance is hex digits"),
        }
    }

    /// The answer, as bytes in the endpoint's own form, to a connection that is not even read.
    pub(super) fn turned_away(
        &self,
        endpoint: metrics::Endpoint,
        caller: &Caller,
        refusal: RequestError,
        unread: fn(&Refusal, &str, &HeaderValue) -> Vec<u8>,
    ) -> Vec<u8> {
        let refusal = Refusal::Request(refusal);
        let asked = Asked { endpoint, begun: Instant::now(), caller, trail: &Trail::default() };
        let request_id = self.audit.refused(&asked, &refusal);
        unread(&refusal, &request_id, &self.instance)
    }
}
