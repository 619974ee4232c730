//! The emulator over real sockets: what AWS would answer, refuse and count.

#[path = "emulator/any_role.rs"]
mod any_role;
#[path = "emulator/chain.rs"]
mod chain;
#[path = "emulator/command.rs"]
mod command;
#[path = "emulator/faults.rs"]
mod faults;
#[path = "emulator/keys.rs"]
mod keys;
#[path = "emulator/requests.rs"]
mod requests;
#[path = "emulator/session_claims.rs"]
mod session_claims;
#[path = "emulator/web_identity.rs"]
mod web_identity;
#[path = "emulator/world.rs"]
mod world;
