//! What a pod's flood costs its neighbour, beside the same flood against a bare server.

use anyhow::{Result, ensure};
use tokio::join;

use crate::world::{AGENT, World};

const ROUNDS: usize = 5;
const SECONDS: &str = "4";
/// More callers than one pod may have connections.
const CALLERS: &str = "400";
const PAUSE_MS: &str = "5";

/// The 99th percentile of a neighbour's answers, a connection each, as a ratio to the bare server's.
pub async fn p99_ratio(world: &World<'_>, bare: &str) -> Result<f64> {
    let mut ratios = Vec::new();
    for round in 0..ROUNDS {
        let mut measured = [0.0; 2];
        // Who comes first takes turns, so that neither gains from it.
        for turn in [round % 2, 1 - round % 2] {
            let address = [AGENT, bare][turn];
            let flood = ["flood", address, SECONDS, CALLERS];
            let neighbour = ["neighbour", address, SECONDS, PAUSE_MS];
            let (flood, neighbour) = join!(world.load(&flood), world.load(&neighbour));
            let (flood, neighbour) = (flood?, neighbour?);
            ensure!(
                neighbour.of("answers") > 100.0,
                "too few of the neighbour's questions: {}",
                neighbour.of("answers")
            );
            measured[turn] = neighbour.of("p99");
            println!(
                "round neighbour {} {}: p99 {:.0} us, flood {} answers {} errors",
                round + 1,
                ["agent", "bare"][turn],
                neighbour.of("p99"),
                flood.of("answers"),
                flood.of("errors")
            );
        }
        ratios.push(measured[0] / measured[1]);
    }
    Ok(super::median(ratios))
}
