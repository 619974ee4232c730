//! Pod Identity for any Kubernetes: annotate a ServiceAccount, and its pods get that AWS role.
//!
//! # The path of a request
//!
//! Read the modules in this order. Each step takes the proof that the step before it made.
//!
//! | module | from | to |
//! |---|---|---|
//! | [`server`] | a connection, within its [`limits`](server::limits) | a [`Caller`](identity::Caller), and a task of its own |
//! | [`server::ecs`] | HTTP | a question, and its answer as JSON |
//! | [`broker`] | **the story**: one function, all steps | [`Broker::credentials`](broker::Broker::credentials) |
//! | [`identity`] | a caller's [`evidence`](identity::evidence) or [token](identity::authorization) | an [`AttestedPod`](identity::AttestedPod), or a refusal |
//! | [`service_accounts`] | the pod's ServiceAccount | what its watch last said |
//! | [`role`] | annotations | a [`RolePlan`](role::RolePlan), if [`policy`] allows the role |
//! | [`cache`] | a plan | its answer; one flight, renewed ahead of time |
//! | [`exchange`] | a plan | one flight, from end to end |
//! | [`cluster`] | a pod | a [`BoundToken`](token::BoundToken): the door to the kube API, and the watches |
//! | [`sts`] | plan and token, or the keys of the hop before | [`Credentials`](credentials::Credentials): the door to STS |
//! | [`server::reply`] | a refusal | status, code, body |
//!
//! Around it: [`app`] builds every part; [`config`] has every flag; [`warm`] keeps the plans in step with the pods; [`admin`],
//! [`audit`], [`metrics`] and [`telemetry`] are for the operator; [`base_credentials`] are the agent's own, where it has any;
//! [`shutdown`] drains; [`harden`] gives up what the process does
//! not need; [`time`] and [`sys`] are the clock and the only `unsafe`. Beside it: [`dev`] runs the same path on loopback, [`emulator`] is
//! the STS that it talks to, [`oidc`] makes what an issuer publishes and what IAM must know of it, [`issuer`] is one of our own for clusters
//! that cannot have another, [`roles`] writes the first `--allow-role` flags, `net` gives a node its
//! addresses, and `fakes` are the two doors in memory (feature `testing`).
//!
//! # What must never break
//!
//! 1. A pod never gets another pod's credentials, and any doubt is a refusal: [`identity`] judges, [`identity::confirm`] asks
//!    etcd, [`role::PlanKey`] holds all that decides an answer. There is no default role. What an address cannot prove is
//!    in the README.
//! 2. The secret never expires in the caller's hand while STS is there, and never outlives what STS said: [`cache`] renews at half
//!    life, by two clocks, and never serves the expired.
//! 3. One flight: any number of callers cause one TokenRequest and one STS call per hop, also when the first hangs up:
//!    [`cache`]. A hop is shared by the plans of one ServiceAccount that stand on it, never by two ServiceAccounts.
//! 4. A cached answer touches no network and no disk, holds no lock across an await, and builds no JSON:
//!    [`cache::Served`] has the bytes.
//! 5. The kube API and STS can be away; a pod that had credentials keeps them until they run out: [`exchange`] shows the last token
//!    again, [`cache`] backs off.
//! 6. Secrets are in no log, metric, panic, core dump or error: [`credentials`] and [`token`] redact, [`harden`] forbids
//!    dumps, [`server::reply`] keeps upstream texts away from pods.
//! 7. Failing closed: a caller gets an error from us, never another role: [`server::reply`] has every one of them.
//! 8. What is not understood is refused: [`role`] takes no unknown annotation, [`config`] no flag that nobody reads.
//! 9. Principals are stable: the same plan has the same [session name](role::session_name) on every node, after every renewal.
#![warn(clippy::unwrap_used)]

pub mod admin;
pub mod app;
pub mod audit;
pub mod base_credentials;
pub mod broker;
pub mod cache;
pub mod cluster;
pub mod config;
pub mod credentials;
pub mod dev;
pub mod emulator;
pub mod exchange;
pub mod explain;
#[cfg(feature = "testing")]
pub mod fakes;
#[cfg(test)]
#[path = "../tests/support/fuzz.rs"]
mod fuzz;
pub mod harden;
pub mod identity;
pub mod issuer;
pub mod metrics;
#[cfg(target_os = "linux")]
pub mod net;
pub mod oidc;
pub mod policy;
pub mod role;
pub mod roles;
pub mod server;
pub mod service_accounts;
pub mod shutdown;
pub mod sts;
pub mod sys;
pub mod telemetry;
pub mod time;
pub mod token;
pub mod warm;
