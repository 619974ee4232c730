//! What a caller is told whose turn does not come, in paused time.

use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::front::Front;
use super::imds::token::Key;
use super::*;
use crate::fakes::World;
use crate::identity::evidence::Origin;
use crate::shutdown;

#[tokio::test(start_paused = true)]
async fn who_has_no_turn_has_its_token_in_time_and_503_for_all_else() {
    let world = World::new();
    let settings =
        imds::Settings { key: Key::random(), v1: true, facts: Default::default(), passthrough: None };
    let (broker, audit) = (world.app.broker.clone(), world.app.audit.clone());
    let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let at = listener.local_addr().unwrap();
    let door = Door::Imds(imds::Endpoint::new(Front::new(broker, audit, &[at], "0"), settings));
    let (limits, (_trigger, drain)) = (Arc::new(Limits::default()), shutdown::drain());
    tokio::spawn(serve(listener, Source::default(), door, Arc::clone(&limits), drain));

    let hasty = limits.admit(Origin::Address(at.ip())).unwrap();
    let ask = async |request: &str| {
        // Booked, and not waited for: as by who sends, and hangs up.
        for _ in 0..10_000 {
            let _ = hasty.turn().now_or_never();
        }
        let begun = Instant::now();
        let mut stream = TcpStream::connect(at).await.unwrap();
        let head =
            format!("{request} HTTP/1.1\r\nHost: {at}\r\nX-aws-ec2-metadata-token-ttl-seconds: 300\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut told = String::new();
        stream.read_to_string(&mut told).await.unwrap();
        (told, begun.elapsed())
    };
    for (request, status) in
        [("PUT /latest/api/token", "HTTP/1.1 200 "), ("GET /latest/meta-data/", "HTTP/1.1 503 ")]
    {
        let (told, took) = ask(request).await;
        assert!(told.starts_with(status), "{request}: {told}");
        // To the timer's millisecond.
        assert!(took <= imds::HOLD + Duration::from_millis(2), "{request}: {took:?}");
    }
}
