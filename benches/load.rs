//! The callers of `figures`: fixed request bytes over plain sockets, as cheap as a client can be.
//!
//! - `load keep ADDRESS SECONDS CONNECTIONS PODS`: requests one after the other on each of so many kept connections
//! - `load fresh ADDRESS SECONDS CALLERS PODS`: so many callers, each with a connection per request
//! - `load open ADDRESS CONNECTIONS PODS`: all open at once, each answered once, then closed
//! - `load ask ADDRESS CALLERS PODS ATTEMPTS PAUSE-MS TEXT`: callers at once, each on a connection per attempt until a
//!   200 whose body holds TEXT comes, as an SDK retries; anything else is a failed attempt
//! - `load flood ADDRESS SECONDS CALLERS`: so many callers of one pod, who keep their connections while they are answered,
//!   whatever the answer
//! - `load neighbour ADDRESS SECONDS PAUSE-MS`: another pod's questions, one after the other; prints the 99th percentile
//! - `load sample ADDRESS`: one answer's body
//!
//! PODS is how many source addresses, 10.0.1.1 and up, the callers are spread over; 0 is the one that the kernel chooses.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Barrier;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, sleep, timeout};

/// The longest read timeout that SDKs have by default is longer; the agent answers within 0.9 s.
const PATIENCE: Duration = Duration::from_secs(5);

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(LocalSet::new().run_until(run(&Args(args))))
}

struct Args(Vec<String>);

impl Args {
    fn at<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(&self, place: usize) -> Result<T> {
        let text = self.0.get(place).with_context(|| format!("argument {place} is missing"))?;
        text.parse().with_context(|| format!("argument {place}: {text:?}"))
    }
}

async fn run(args: &Args) -> Result<()> {
    let (mode, to) = (args.at::<String>(0)?, args.at::<SocketAddr>(1)?);
    match mode.as_str() {
        "keep" => rounds(to, args.at(2)?, args.at(3)?, args.at(4)?, true).await,
        "fresh" => rounds(to, args.at(2)?, args.at(3)?, args.at(4)?, false).await,
        "open" => open(to, args.at(2)?, args.at(3)?).await,
        "ask" => {
            let pause = Duration::from_millis(args.at(5)?);
            ask(to, args.at(2)?, args.at(3)?, args.at(4)?, pause, args.at(6)?).await
        }
        "flood" => flood(to, args.at(2)?, args.at(3)?).await,
        "neighbour" => neighbour(to, args.at(2)?, Duration::from_millis(args.at(3)?)).await,
        "sample" => {
            let answer = exchange(&mut connect(None, to).await?, &request(to, false)).await?;
            print!("{}", answer.split_once("\r\n\r\n").context("no body")?.1);
            Ok(())
        }
        other => bail!("no mode {other:?}"),
    }
}

/// What an SDK sends.
fn request(to: SocketAddr, close: bool) -> String {
    let close = if close { "Connection: close\r\n" } else { "" };
    format!(
        "GET /v1/credentials HTTP/1.1\r\nHost: {to}\r\nUser-Agent: load\r\nAccept: application/json\r\n{close}\r\n"
    )
}

/// The address of a pod, by its number from 0.
fn pod(number: usize) -> IpAddr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 1, 1).to_bits() + number as u32).into()
}

async fn connect(from: Option<IpAddr>, to: SocketAddr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if let Some(from) = from {
        socket.bind(SocketAddr::new(from, 0))?;
    }
    Ok(socket.connect(to).await?)
}

/// One request and its whole answer, on a connection that stays open.
async fn exchange(stream: &mut TcpStream, request: &str) -> Result<String> {
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::with_capacity(8 * 1024);
    loop {
        ensure!(stream.read_buf(&mut answer).await? > 0, "closed before its answer was whole");
        let text = std::str::from_utf8(&answer)?;
        if let Some((head, body)) = text.split_once("\r\n\r\n")
            && body.len() >= content_length(head)?
        {
            return Ok(text.to_owned());
        }
    }
}

fn content_length(head: &str) -> Result<usize> {
    let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with("content-length:"));
    Ok(line.context("no content-length")?[15..].trim().parse()?)
}

#[derive(Default)]
struct Round {
    answers: u64,
    errors: u64,
    length: usize,
}

/// As many requests as get through.
async fn rounds(to: SocketAddr, seconds: f64, callers: usize, pods: usize, keep: bool) -> Result<()> {
    let begun = Instant::now();
    let until = begun + Duration::from_secs_f64(seconds);
    let request: Rc<str> = request(to, !keep).into();
    let mut tasks = JoinSet::new();
    for number in 0..callers {
        let request = Rc::clone(&request);
        tasks.spawn_local(async move {
            let mut round = Round::default();
            let mut answer = vec![0; 16 * 1024];
            // A connection each by every caller's own pods in turn: no pod asks more often than it may.
            for number in (number..).step_by(callers) {
                if Instant::now() >= until {
                    break;
                }
                let from = number.checked_rem(pods).map(pod);
                let ended = match keep {
                    true => kept(from, to, &request, &mut answer, until, &mut round).await,
                    false => fresh(from, to, &request, &mut answer).await.map(|length| {
                        round.answers += 1;
                        round.length = length;
                    }),
                };
                round.errors += u64::from(ended.is_err());
            }
            round
        });
    }
    let mut all = Round::default();
    while let Some(round) = tasks.join_next().await {
        let Round { answers, errors, length } = round?;
        all = Round { answers: all.answers + answers, errors: all.errors + errors, length };
    }
    let Round { answers, errors, length } = all;
    println!("answers {answers} errors {errors} length {length} seconds {}", begun.elapsed().as_secs_f64());
    Ok(())
}

/// The first answer is taken apart; the others are as long.
async fn kept(
    from: Option<IpAddr>,
    to: SocketAddr,
    request: &str,
    answer: &mut [u8],
    until: Instant,
    round: &mut Round,
) -> Result<()> {
    let mut stream = connect(from, to).await?;
    let length = exchange(&mut stream, request).await?.len();
    round.answers += 1;
    round.length = length;
    while Instant::now() < until {
        stream.write_all(request.as_bytes()).await?;
        stream.read_exact(&mut answer[..length]).await?;
        ensure!(answer.starts_with(b"HTTP/1.1 200"), "not 200");
        round.answers += 1;
    }
    Ok(())
}

async fn fresh(from: Option<IpAddr>, to: SocketAddr, request: &str, answer: &mut [u8]) -> Result<usize> {
    let mut stream = connect(from, to).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut length = 0;
    loop {
        match stream.read(&mut answer[length..]).await? {
            0 => break,
            more => length += more,
        }
    }
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "not 200");
    Ok(length)
}

async fn open(to: SocketAddr, connections: usize, pods: usize) -> Result<()> {
    let request: Rc<str> = request(to, false).into();
    let all_answered = Rc::new(Barrier::new(connections));
    let mut tasks = JoinSet::new();
    for number in 0..connections {
        let (request, all_answered) = (Rc::clone(&request), Rc::clone(&all_answered));
        tasks.spawn_local(async move {
            let answered = async {
                let mut stream = connect(Some(pod(number % pods)), to).await?;
                let good = exchange(&mut stream, &request).await?.starts_with("HTTP/1.1 200");
                anyhow::Ok((stream, good))
            };
            let answered = timeout(PATIENCE, answered).await;
            all_answered.wait().await;
            matches!(answered, Ok(Ok((_, true))))
        });
    }
    let (mut answers, mut errors) = (0, 0);
    while let Some(good) = tasks.join_next().await {
        if good? { answers += 1 } else { errors += 1 }
    }
    println!("answers {answers} errors {errors}");
    Ok(())
}

async fn ask(
    to: SocketAddr,
    callers: usize,
    pods: usize,
    attempts: usize,
    pause: Duration,
    text: String,
) -> Result<()> {
    let begun = Instant::now();
    let (request, text): (Rc<str>, Rc<str>) = (request(to, true).into(), text.into());
    let mut tasks = JoinSet::new();
    for number in 0..callers {
        let (request, text) = (Rc::clone(&request), Rc::clone(&text));
        tasks.spawn_local(async move {
            for attempt in 1..=attempts {
                let asked =
                    async { exchange(&mut connect(Some(pod(number % pods)), to).await?, &request).await };
                if let Ok(Ok(answer)) = timeout(PATIENCE, asked).await
                    && answer.starts_with("HTTP/1.1 200")
                    && answer.contains(&*text)
                {
                    return Some(attempt);
                }
                if attempt < attempts {
                    sleep(pause).await;
                }
            }
            None
        });
    }
    let (mut answers, mut errors, mut most) = (0, 0, 0);
    while let Some(answered) = tasks.join_next().await {
        match answered? {
            Some(attempts) => (answers, most) = (answers + 1, most.max(attempts)),
            None => errors += 1,
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!("answers {answers} errors {errors} attempts {most} seconds {seconds}");
    Ok(())
}

async fn flood(to: SocketAddr, seconds: f64, callers: usize) -> Result<()> {
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    let request: Rc<str> = request(to, false).into();
    let mut tasks = JoinSet::new();
    for _ in 0..callers {
        let request = Rc::clone(&request);
        tasks.spawn_local(async move {
            let (mut answers, mut errors) = (0, 0);
            while Instant::now() < until {
                let Ok(mut stream) = connect(Some(pod(0)), to).await else { continue };
                // 503 ends the connection; who asks for nothing but trouble comes again at once.
                while Instant::now() < until
                    && let Ok(answer) = exchange(&mut stream, &request).await
                {
                    if answer.starts_with("HTTP/1.1 200") { answers += 1 } else { errors += 1 }
                }
            }
            (answers, errors)
        });
    }
    let (mut answers, mut errors) = (0, 0);
    while let Some(task) = tasks.join_next().await {
        let (good, bad) = task?;
        (answers, errors) = (answers + good, errors + bad);
    }
    println!("answers {answers} errors {errors}");
    Ok(())
}

async fn neighbour(to: SocketAddr, seconds: f64, pause: Duration) -> Result<()> {
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    let (request, mut took) = (request(to, true), Vec::new());
    while Instant::now() < until {
        sleep(pause).await;
        let begun = Instant::now();
        let asked = async { exchange(&mut connect(Some(pod(1)), to).await?, &request).await };
        let answer = timeout(PATIENCE, asked).await??;
        ensure!(answer.starts_with("HTTP/1.1 200"), "the neighbour was refused: {answer}");
        took.push(begun.elapsed());
    }
    took.sort_unstable();
    let p99 = took[took.len() * 99 / 100];
    println!("answers {} p99 {}", took.len(), p99.as_secs_f64() * 1e6);
    Ok(())
}
