//! `rolecall net` on real kernels: addresses, redirect and proof, on nodes and pods made of network namespaces.

#![cfg(target_os = "linux")]

#[path = "support/net.rs"]
mod net;
#[path = "support/netns.rs"]
mod netns;

#[path = "netns/addresses.rs"]
mod addresses;
#[path = "netns/command.rs"]
mod command;
#[path = "netns/redirect.rs"]
mod redirect;
#[path = "netns/verify.rs"]
mod verify;

const ADDRESSES: [&str; 3] = ["169.254.170.23", "169.254.170.2", "fd00:ec2::23"];
