//! Pod Identity for any Kubernetes.
pub mod cluster;
pub mod credentials;
pub mod emulator;
pub mod identity;
#[cfg(target_os = "linux")]
pub mod net;
pub mod policy;
pub mod role;
pub mod service_accounts;
pub mod token;
