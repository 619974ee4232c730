//! What an attacker tries, one test each, and what it gets: its own role, or a refusal. Never its victim's.
//!
//! | attack | tests |
//! |---|---|
//! | an address that was another pod's a moment ago | [`reuse`] |
//! | another pod's address on a shared bridge, or behind a cable of one's own; NET_ADMIN in the pod | [`spoof`] |
//! | names of cgroups, numbers of processes, shared namespaces; the node's own processes, and other nodes | [`namespace`] |

#![cfg(target_os = "linux")]
// Clippy allows it in test functions, but not in what they are made of.
#![allow(clippy::unwrap_used)]

#[path = "support/http.rs"]
mod http;
#[path = "support/ladder.rs"]
mod ladder;
#[path = "support/netns.rs"]
mod netns;
#[path = "support/process.rs"]
mod process;

#[path = "attack/admin.rs"]
mod admin;
#[path = "attack/any_order.rs"]
mod any_order;
#[path = "attack/model.rs"]
mod model;
#[path = "attack/namespace.rs"]
mod namespace;
#[path = "attack/nodes.rs"]
mod nodes;
#[path = "attack/objects.rs"]
mod objects;
#[path = "attack/pid.rs"]
mod pid;
#[path = "attack/reuse.rs"]
mod reuse;
#[path = "attack/spoof.rs"]
mod spoof;
