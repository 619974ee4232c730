//! Property: in whatever order things happen, an answer carries only the role that the kube API shows for the attested pod.
//!
//! Random events on a paused clock, with both doors in memory, and evidence given instead of taken. The oracle keeps every state of the
//! cluster while a question is open, and an answer must be right for one of them. A failure prints its seed and the fewest events that
//! still show it; `ROLECALL_SEED=… ROLECALL_CASES=1` runs it again.

use std::fmt::Debug;

use crate::model::{Event, Mode, ReusedAddress, run, tenants};
use crate::netns::say;

/// In the time that the tier has.
const CASES: u64 = 150;
const EVENTS: usize = 60;
const REUSES: usize = 10_000;

#[test]
fn in_any_order_of_events_a_pod_that_the_kernel_shows_gets_only_its_own_role() {
    holds(Event::random, |seed, events| run(Mode::Kernel, seed, events));
}

/// What an address cannot prove is in the README: here each has one pod, which the watch and a list agree upon.
#[test]
fn in_any_order_of_events_an_address_gets_only_the_role_of_a_pod_that_shows_it() {
    holds(Event::random, |seed, events| run(Mode::Address, seed, events));
}

#[test]
fn in_any_order_of_events_a_pod_gets_only_what_its_service_account_asks_for_under_that_name() {
    holds(tenants::Event::random, |seed, events| tenants::run(false, seed, events));
}

#[test]
fn in_any_order_of_events_a_pod_gets_only_what_it_asks_for_and_its_namespace_permits() {
    holds(tenants::Event::random, |seed, events| tenants::run(true, seed, events));
}

fn holds<E: Copy + Debug>(
    random: impl Fn(&mut fastrand::Rng) -> E,
    run: impl Fn(u64, &[E]) -> Result<(), String>,
) {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let first = number("ROLECALL_SEED").unwrap_or_else(|| fastrand::u64(..));
    for seed in (0..number("ROLECALL_CASES").unwrap_or(CASES)).map(|case| first.wrapping_add(case)) {
        let mut dice = fastrand::Rng::with_seed(seed);
        let length = dice.usize(1..EVENTS);
        let events: Vec<E> = (0..length).map(|_| random(&mut dice)).collect();
        if let Err(why) = run(seed, &events) {
            let (events, why) = shrink(|events| run(seed, events), events, why);
            panic!("ROLECALL_SEED={seed}: {why}\n{events:#?}");
        }
    }
}

/// Leaves out what it still fails without: large pieces first, then single events.
fn shrink<E: Copy>(
    run: impl Fn(&[E]) -> Result<(), String>,
    mut events: Vec<E>,
    mut why: String,
) -> (Vec<E>, String) {
    let mut piece = events.len().div_ceil(2);
    loop {
        let mut at = 0;
        while at < events.len() {
            let mut fewer = events.clone();
            fewer.drain(at..(at + piece).min(events.len()));
            match run(&fewer) {
                Err(still) => (events, why) = (fewer, still),
                Ok(()) => at += piece,
            }
        }
        if piece == 1 {
            return (events, why);
        }
        piece = piece.div_ceil(2);
    }
}

/// As in [`crate::reuse`], where the kernel's evidence is its own: 0 wrong, and 0 refused once the pod is in the API, however late the
/// watch is.
#[test]
fn an_address_reused_ten_thousand_times_in_random_order_names_only_its_pod_of_the_moment() {
    let seed =
        std::env::var("ROLECALL_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    let reused = ReusedAddress { rounds: REUSES, seed }.run();
    say(&format!("reuse: {REUSES} times in memory, ROLECALL_SEED={seed}, {reused}"));
}
