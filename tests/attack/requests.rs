//! Requests that are not what they seem: for a proxy, for a name, or hidden in another.

use crate::http::{self, Answer};
use crate::ladder::{V6, node, with_agent};
use crate::loopback::Loopback;

const PATH: &str = "/v1/credentials";

/// `GET` for our path with these headers.
fn get(headers: &str) -> String {
    format!("GET {PATH} HTTP/1.1\r\n{headers}\r\n\r\n")
}

fn statuses(answers: &[Answer]) -> Vec<u16> {
    answers.iter().map(|answer| answer.status).collect()
}

/// Each of `texts` gets one refusal, with this code where it has one of ours.
async fn all_refused(agent: &Loopback, texts: &[String], code: &str) {
    for (text, answers) in texts.iter().zip(agent.all_answers(texts).await) {
        let [answer] = &answers[..] else { panic!("{text:?}: {answers:?}") };
        assert_eq!((answer.status / 100, &*answer.code()), (4, code), "{text:?}");
    }
}

/// None of `texts` gets credentials: each is refused, by us or before us, or its connection is closed.
async fn none_granted(agent: &Loopback, texts: &[String]) {
    for (text, answers) in texts.iter().zip(agent.all_answers(texts).await) {
        assert!(answers.iter().all(|answer| (400..500).contains(&answer.status)), "{text:?}: {answers:?}");
    }
    assert_eq!(
        statuses(&agent.answers(http::request(agent.address).as_bytes()).await),
        [200],
        "others are unharmed"
    );
}

#[tokio::test]
async fn a_name_that_is_rebound_to_our_address_is_refused() {
    let agent = Loopback::start();
    let port = agent.address.port();
    let hosts = [
        "evil.example".to_owned(),
        format!("evil.example:{port}"),
        "127.0.0.1.nip.io".to_owned(),
        format!("127-0-0-1.evil.example:{port}"),
        "localhost".to_owned(),
        format!("localhost:{port}"),
        "localhost.localdomain".to_owned(),
        "ip6-localhost".to_owned(),
        "evil.example 127.0.0.1".to_owned(),
        "evil.example,127.0.0.1".to_owned(),
        "127.0.0.1,evil.example".to_owned(),
    ];
    all_refused(&agent, &hosts.map(|host| get(&format!("Host: {host}"))), "RequestNotDirect").await;
}

#[tokio::test]
async fn only_our_address_itself_is_taken_for_a_host() {
    let agent = Loopback::start();
    let own = agent.address;
    let (ip, port) = (own.ip(), own.port());
    let hosts = [
        String::new(),
        "10.0.0.1".into(),
        // Other ways to write it: decimal, octal, hexadecimal, short, padded, mapped, in brackets, with a zone.
        "2130706433".into(),
        format!("2130706433:{port}"),
        "0177.0.0.1".into(),
        "0x7f.0.0.1".into(),
        "0x7f000001".into(),
        "127.1".into(),
        "127.0.0.01".into(),
        format!("[::ffff:{ip}]"),
        format!("[::ffff:{ip}]:{port}"),
        format!("::ffff:{ip}"),
        format!("[{ip}]"),
        format!("[{ip}]:{port}"),
        format!("[{ip}"),
        format!("{ip}]"),
        format!("[::1%1]:{port}"),
        // With something before it, behind it or in it.
        format!("user@{own}"),
        format!("user:pass@{own}"),
        format!("evil.example@{own}"),
        format!("{ip}."),
        format!("{ip}.:{port}"),
        format!("{ip}:"),
        format!("{ip}:99999"),
        format!("{ip}:-1"),
        format!("{ip}:http"),
        format!("{own}/"),
        format!("http://{own}"),
        format!("{own}#evil.example"),
        format!("{ip}%00.evil.example"),
        format!("{own} evil.example"),
        "127.0.0.１".into(),
    ];
    let texts: Vec<String> = hosts.iter().map(|host| get(&format!("Host: {host}"))).collect();
    all_refused(&agent, &texts, "RequestNotDirect").await;
    let none_or_two = [
        get("X-No: host"),
        get(&format!("Host: {own}\r\nHost: evil.example")),
        get(&format!("Host: evil.example\r\nHost: {own}")),
        get(&format!("Host: {own}\r\nHost: {own}")),
        get(&format!("Host: {own}\r\nhOST: evil.example")),
        format!("GET {PATH} HTTP/1.0\r\nHost: evil.example\r\n\r\n"),
        format!("GET {PATH} HTTP/1.0\r\nHost: {own}\r\nHost: evil.example\r\n\r\n"),
    ];
    all_refused(&agent, &none_or_two, "RequestNotDirect").await;
    // What an SDK may leave out or add is no offence.
    for text in [
        get(&format!("Host: {ip}")),
        get(&format!("hOST:  {own} \t")),
        get(&format!("Host: {own}\r\nAccept: text/html, image/gif\r\nUser-Agent: x")),
        format!("GET {PATH} HTTP/1.0\r\n\r\n"),
        format!("GET {PATH} HTTP/1.0\r\nHost: {own}\r\n\r\n"),
    ] {
        assert_eq!(statuses(&agent.answers(text.as_bytes()).await), [200], "{text:?}");
    }
}

#[test]
fn an_ipv6_host_is_our_address_in_any_spelling_and_nothing_else() {
    let Some(node) = node("requests_ipv6") else { return };
    with_agent(&node, |_| {
        let code = |host: &str| {
            let to = V6.parse().unwrap();
            node.run(async || http::get("fd00:ec2::23", to, &get(&format!("Host: {host}"))).await).code()
        };
        // The next question is who asks, and that is the host.
        for ours in
            ["[fd00:ec2::23]:9902", "[fd00:ec2::23]", "[FD00:EC2::23]:9902", "[fd00:0ec2:0:0:0:0:0:0023]"]
        {
            assert_eq!(code(ours), "CallerNotIdentified", "{ours}");
        }
        for other in [
            "fd00:ec2::23",
            "[[fd00:ec2::23]]",
            "[fd00:ec2::23]]",
            "[fd00:ec2::23",
            "[fd00:ec2::23%1]:9902",
            "[fd00:ec2::23%lo]",
            "[fd00:ec2::24]:9902",
            "[fd00:ec2::23].evil.example",
            "[::169.254.170.23]",
        ] {
            assert_eq!(code(other), "RequestNotDirect", "{other}");
        }
    });
}

#[tokio::test]
async fn what_a_browser_or_a_proxy_sends_is_refused() {
    let agent = Loopback::start();
    let headers = [
        "X-Forwarded-For: 10.0.0.1",
        "x-forwarded-for:",
        "Forwarded: for=10.0.0.1",
        "Origin: http://evil.example",
        "Origin: null",
        "Referer: http://evil.example",
        "Sec-Fetch-Mode: cors",
        "sec-fetch-site: none",
    ];
    let texts = headers.map(|header| get(&format!("Host: {}\r\n{header}", agent.address)));
    all_refused(&agent, &texts, "RequestNotDirect").await;
}

#[tokio::test]
async fn a_target_that_is_meant_for_a_proxy_is_refused() {
    let agent = Loopback::start();
    let own = agent.address;
    let to = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: {own}\r\n\r\n");
    let absolute = [
        to(&format!("http://{own}{PATH}")),
        to(&format!("HTTP://{own}{PATH}")),
        to(&format!("https://{own}{PATH}")),
        to(&format!("http://evil.example{PATH}")),
        to(&format!("http://user@{own}{PATH}")),
    ];
    all_refused(&agent, &absolute, "RequestNotDirect").await;
    let other_paths = [
        to(&format!("//{own}{PATH}")),
        to(&format!("{PATH}/")),
        to(&format!("{PATH}?x=1")),
        to(&format!("{PATH}?")),
        to(&format!("{PATH};x")),
        to(&format!("/.{PATH}")),
        to(&format!("/x/..{PATH}")),
        to("/v1//credentials"),
        to("/v1/%63redentials"),
        to("/V1/credentials"),
        to(&format!("{PATH}%00")),
        to(&format!("{PATH}%20")),
    ];
    all_refused(&agent, &other_paths, "NotFound").await;
    let not_even = [
        to(&format!("http:{PATH}")),
        to(&format!("http://{PATH}")),
        to(&format!("{PATH}\0")),
        to(&format!("\t{PATH}")),
        to(PATH.trim_start_matches('/')),
        to("*"),
        format!("CONNECT {own} HTTP/1.1\r\nHost: {own}\r\n\r\n"),
        format!("CONNECT 10.0.0.1:80 HTTP/1.1\r\nHost: {own}\r\n\r\n"),
        format!("OPTIONS * HTTP/1.1\r\nHost: {own}\r\n\r\n"),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
        format!("GET {PATH}\r\n"),
        format!("GET {PATH} HTTP/9.9\r\nHost: {own}\r\n\r\n"),
        format!("GET {PATH} HTTP/1.1 HTTP/1.1\r\nHost: {own}\r\n\r\n"),
        format!("GET {PATH} http/1.1\r\nHost: {own}\r\n\r\n"),
    ];
    none_granted(&agent, &not_even).await;
}

#[tokio::test]
async fn headers_that_two_parsers_would_read_differently_are_refused() {
    let agent = Loopback::start();
    let own = agent.address;
    none_granted(
        &agent,
        &[
            get(&format!("Host: {own}\r\nX-Folded: a\r\n b")),
            get(&format!("Host: evil.example\r\n {own}")),
            get(&format!("Host:\r\n {own}")),
            get(&format!("Host : {own}")),
            get(&format!(" Host: {own}")),
            get(&format!("Host: {own}\r\nNo colon")),
            get(&format!("Host: {own}\r\n: no name")),
            get(&format!("Host: {own}\r\nX: a\0b")),
            get(&format!("Host: {own}\0.evil.example")),
            get(&format!("Host: {own}\r\nX\0: a")),
            get(&format!("Host: {own}\r\nX: a\rHost: evil.example")),
            get(&format!("Host: evil.example\rHost: {own}")),
            get(&format!("Host: evil.example\nHost: {own}")),
            get(&format!("Host: {own}\nX-Forwarded-For: 10.0.0.1")),
        ],
    )
    .await;
}

/// `/hidden` would be a NotFound, and one more answer.
#[tokio::test]
async fn the_body_of_a_request_is_never_taken_for_a_request() {
    let agent = Loopback::start();
    let own = agent.address;
    let hidden = format!("GET /hidden HTTP/1.1\r\nHost: {own}\r\n\r\n");
    let (length, hex) = (hidden.len(), format!("{:x}", hidden.len()));
    let chunk = format!("{hex}\r\n{hidden}\r\n0\r\n\r\n");
    let with = |method: &str, headers: &str, body: &str| {
        format!("{method} {PATH} HTTP/1.1\r\nHost: {own}\r\n{headers}\r\n\r\n{body}")
    };
    let mut texts = vec![];
    for method in ["GET", "POST"] {
        texts.extend([
            with(method, &format!("Content-Length: {length}"), &hidden),
            with(method, "Transfer-Encoding: chunked", &chunk),
            with(method, "Content-Length: 1000000\r\nExpect: 100-continue", &hidden),
            // Both, in both orders; twice, alike and unlike; in a list.
            with(method, "Content-Length: 4\r\nTransfer-Encoding: chunked", &chunk),
            with(method, "Transfer-Encoding: chunked\r\nContent-Length: 4", &chunk),
            with(method, &format!("Content-Length: {length}\r\nContent-Length: {length}"), &hidden),
            with(method, &format!("Content-Length: 0\r\nContent-Length: {length}"), &hidden),
            with(method, &format!("Content-Length: {length}\r\nContent-Length: 0"), &hidden),
            with(method, &format!("Content-Length: {length}, {length}"), &hidden),
            // What is no length, and no coding that we know.
            with(method, &format!("Content-Length: +{length}"), &hidden),
            with(method, &format!("Content-Length: 0x{hex}"), &hidden),
            with(method, &format!("Content-Length: {length} "), &hidden),
            with(method, "Content-Length: -1", &hidden),
            with(method, "Content-Length: 99999999999999999999", &hidden),
            with(method, "Transfer-Encoding: xchunked", &chunk),
            with(method, "Transfer-Encoding: chunked, identity", &chunk),
            with(method, "Transfer-Encoding: identity, chunked", &chunk),
            with(method, "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", &chunk),
            with(method, "Transfer-Encoding:\tchunked", &chunk),
            with(method, "Transfer-Encoding: \u{b}chunked", &chunk),
            // Chunks: with extensions, with trailers, too long, wrong.
            with(method, "Transfer-Encoding: chunked", &format!("{hex};x=\"\r\n\"\r\n{hidden}\r\n0\r\n\r\n")),
            with(
                method,
                "Transfer-Encoding: chunked",
                &format!("{hex};{}\r\n{hidden}\r\n0\r\n\r\n", "x".repeat(20_000)),
            ),
            with(method, "Transfer-Encoding: chunked", &format!("{hex}\r\n{hidden}\r\n0\r\nX: y\r\n\r\n")),
            with(method, "Transfer-Encoding: chunked", &format!("{hex}\n{hidden}\n0\n\n")),
            with(method, "Transfer-Encoding: chunked", &format!("0{hex}\r\n{hidden}\r\n0\r\n\r\n")),
            with(
                method,
                "Transfer-Encoding: chunked",
                &format!("ffffffffffffffff{hex}\r\n{hidden}\r\n0\r\n\r\n"),
            ),
            with(method, "Transfer-Encoding: chunked", &format!("-{hex}\r\n{hidden}\r\n0\r\n\r\n")),
        ]);
    }
    // An old version has no chunks.
    texts.push(format!("GET {PATH} HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}"));
    texts.push(format!(
        "GET {PATH} HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: {length}\r\n\r\n{hidden}"
    ));
    for (text, answers) in texts.iter().zip(agent.all_answers(&texts).await) {
        let first = statuses(&answers).first().copied().unwrap_or(400);
        let granted = if text.starts_with("GET") { 200 } else { 405 };
        assert!(first == granted || (400..500).contains(&first), "{text}: {answers:?}");
        assert!(answers.iter().skip(1).all(|answer| answer.status == 400), "{text}: {answers:?}");
    }
    let refused = agent.metrics.render(Default::default());
    let not_found =
        refused.lines().find(|line| line.starts_with("rolecall_refusals_total{code=\"NotFound\"}"));
    assert!(not_found.is_none_or(|line| line.ends_with(" 0")), "{not_found:?}");
}

#[tokio::test]
async fn a_pipelined_request_with_a_body_is_told_from_the_next_one() {
    let agent = Loopback::start();
    let own = agent.address;
    let next = http::request(own);
    for method in ["POST", "GET"] {
        let first = format!("{method} {PATH} HTTP/1.1\r\nHost: {own}\r\nContent-Length: 5\r\n\r\nGET /");
        let statuses = statuses(&agent.answers(format!("{first}{next}{next}").as_bytes()).await);
        let first = if method == "GET" { 200 } else { 405 };
        // Where the body was not read, the connection ends with the first answer.
        assert!(statuses == [first, 200, 200] || statuses == [first], "{method}: {statuses:?}");
    }
}

#[tokio::test]
async fn an_offer_to_speak_something_else_is_not_taken() {
    let agent = Loopback::start();
    let offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__";
    for offer in [offer, "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x"] {
        let text = get(&format!("Host: {}\r\n{offer}", agent.address));
        assert_eq!(statuses(&agent.answers(text.as_bytes()).await), [200], "{offer}");
    }
}
