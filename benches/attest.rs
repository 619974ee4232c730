//! What the kernel's evidence costs for one connection: the ladder by itself, as the image has it.
//!
//! - `attest warm ADDRESS CONNECTIONS`: by one agent that stays
//! - `attest rescan ADDRESS CONNECTIONS`: by an agent that knows nobody yet, for each
//!
//! Says `listening`, closes each connection once its pod is known, and prints at the end, in microseconds: the median and
//! the worst of the CPU that each took, in all threads, and the median of the time until it was known.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::time::{ClockId, clock_gettime};
use rolecall::identity::kernel::Kernel;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [mode, address, connections] = args.as_slice() else { bail!("attest MODE ADDRESS CONNECTIONS") };
    let connections: usize = connections.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(address).await?;
        println!("listening");
        let (mut cpu, mut known) = (Vec::new(), Vec::new());
        let mut kernel = Kernel::start("/proc")?;
        for _ in 0..connections {
            let call = Call::accept(&listener).await?;
            match mode.as_str() {
                "warm" => {}
                "rescan" => kernel = Kernel::start("/proc")?,
                other => bail!("no mode {other:?}"),
            }
            let (begun, before) = (Instant::now(), used()?);
            call.attest(&kernel).await?;
            cpu.push(used()?.saturating_sub(before));
            known.push(begun.elapsed());
        }
        cpu.sort_unstable();
        known.sort_unstable();
        let micros = |time: Option<&Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1e6);
        let (middle, worst, known) = (cpu.get(cpu.len() / 2), cpu.last(), known.get(known.len() / 2));
        println!("median {} worst {} known {}", micros(middle), micros(worst), micros(known));
        Ok(())
    })
}

/// As long as container credentials are held.
const PATIENCE: Duration = Duration::from_millis(900);

struct Call {
    stream: TcpStream,
    peer: SocketAddr,
    local: SocketAddr,
}

impl Call {
    async fn accept(listener: &TcpListener) -> Result<Self> {
        let (stream, peer) = listener.accept().await?;
        let local = stream.local_addr()?;
        Ok(Self { stream, peer, local })
    }

    async fn attest(&self, kernel: &Kernel) -> Result<()> {
        let arrival = kernel.arrived(&self.stream, self.peer, self.local);
        kernel.attest(arrival, Instant::now() + PATIENCE).await.with_context(|| self.peer.to_string())?;
        Ok(())
    }
}

/// What the process has used so far, in all threads.
fn used() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?.into())
}
