//! Pod Identity for any Kubernetes.
#![warn(clippy::unwrap_used)]

pub mod admin;
pub mod app;
pub mod broker;
pub mod cache;
pub mod cluster;
pub mod config;
pub mod credentials;
pub mod dev;
pub mod emulator;
pub mod exchange;
#[cfg(feature = "testing")]
pub mod fakes;
pub mod identity;
pub mod metrics;
#[cfg(target_os = "linux")]
pub mod net;
pub mod policy;
pub mod role;
pub mod server;
pub mod service_accounts;
pub mod shutdown;
pub mod sts;
pub mod sys;
pub mod telemetry;
pub mod time;
pub mod token;
pub mod warm;
