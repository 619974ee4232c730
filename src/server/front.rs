//! What every endpoint has before its own rules: the path behind it, the addresses that it answers to, the log of what it answers.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::HeaderValue;

use crate::audit::Audit;
use crate::broker::Broker;

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
}
