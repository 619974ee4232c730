//! What an attacker tries, one test each, and what it gets: its own role, or a refusal. Never its victim's.
//!
//! | attack | tests |
//! |---|---|
//! | an address reused at once with the watch held back; thousands of times in random order, under load | [`reuse`] |
//! | a spoofed source on a bridge, its victim alive, silent, gone, or announced away; behind a cable of its own | [`spoof`] |
//! | NET_ADMIN in the pod: links that move, bridges in the pod | [`admin`]; addresses and link-layer addresses in [`spoof`] |
//! | nested cgroup names, a namespace of two pods' processes, or of nobody's | [`namespace`] |
//! | a number of a process that changes hands between two steps | [`pid`] |
//! | processes of the host, a neighbour node with a hand-made route, and its pods | [`nodes`] |
//! | a pod deleted while its connection stays open, two pods on one address, the watch stalled for ten minutes | [`objects`] |
//! | hostNetwork pods with no token, a foreign, an expired, a deleted pod's, one for another audience | [`host_network`] |
//! | header smuggling, absolute targets, Host games, rebound names | [`requests`] |
//! | any order of events, and an address reused ten thousand times in memory | [`any_order`], by the oracle in [`model`] |
//!
//! What strangers write, as it never should be, is in `fuzz.rs`.

#![cfg(target_os = "linux")]

#[path = "support/http.rs"]
mod http;
#[path = "support/ladder.rs"]
mod ladder;
#[path = "support/loopback.rs"]
mod loopback;
#[path = "support/netns.rs"]
mod netns;
#[path = "support/process.rs"]
mod process;

#[path = "attack/admin.rs"]
mod admin;
#[path = "attack/any_order.rs"]
mod any_order;
#[path = "attack/host_network.rs"]
mod host_network;
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
#[path = "attack/requests.rs"]
mod requests;
#[path = "attack/reuse.rs"]
mod reuse;
#[path = "attack/spoof.rs"]
mod spoof;
