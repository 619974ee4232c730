//! Pod Identity for any Kubernetes.
pub mod emulator;
#[cfg(target_os = "linux")]
pub mod net;
