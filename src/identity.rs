//! Caller -> AttestedPod, or a refusal.
pub mod pods;
