//! HTTPS_PROXY, HTTP_PROXY and NO_PROXY. The proxy also shows where calls for AWS's endpoints would go.

use rolecall::sts::connector::Proxy;
use tokio::time::Instant;

use super::*;
use crate::pki::Authority;
use crate::stub::{Does, Stub};

const REFUSED: &str = "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n";

fn by(settings: Settings, proxy: &str, no_proxy: &str) -> Settings {
    Settings { proxy: Some(Proxy::parse(proxy, no_proxy).unwrap()), ..settings }
}

fn at(proxy: &Stub) -> String {
    format!("http://{}", proxy.addr)
}

/// A proxy that leads everything to `target`.
async fn leading_to(target: &Stub) -> Stub {
    Stub::at("127.0.0.1:0", None, Does::Proxy(target.addr)).await
}

#[tokio::test]
async fn a_call_over_tls_goes_through_a_tunnel_that_the_proxy_cannot_look_into() {
    let authority = Authority::new();
    let sts = Stub::tls(&authority.leaf("DNS:sts.internal.example"), granted()).await;
    let proxy = leading_to(&sts).await;
    let settings = believing("https://sts.internal.example/sts", &authority);
    call(by(settings, &format!("http://me:s3cr%40t@{}", proxy.addr), "")).await.unwrap();

    let tunnel = proxy.only_request();
    assert_eq!(tunnel.line(), "CONNECT sts.internal.example:443 HTTP/1.1");
    // me:s3cr@t
    assert!(tunnel.head.contains("Proxy-Authorization: Basic bWU6czNjckB0\r\n"), "{tunnel:?}");
    let request = sts.only_request();
    assert_eq!(request.line(), "POST /sts/ HTTP/1.1");
    assert!(!request.head.to_ascii_lowercase().contains("proxy-authorization"), "{request:?}");
}

#[tokio::test]
async fn the_proxy_itself_may_speak_tls() {
    let authority = Authority::new();
    let sts = Stub::tls(&authority.leaf("DNS:sts.internal.example"), granted()).await;
    let proxy = Stub::at("127.0.0.1:0", Some(&authority.leaf("DNS:localhost")), Does::Proxy(sts.addr)).await;
    let url = format!("https://localhost:{}", proxy.addr.port());
    call(by(believing("https://sts.internal.example", &authority), &url, "")).await.unwrap();
    let why = away(call(by(own("https://sts.internal.example"), &url, "")).await);
    assert!(why.contains(&format!("by way of the proxy {url}")) && why.contains("--sts-ca-bundle"), "{why}");
}

#[tokio::test]
async fn a_plain_call_is_handed_to_the_proxy_whole() {
    let sts = Stub::plain(granted()).await;
    let proxy = leading_to(&sts).await;
    let url = format!("http://me:pw@{}", proxy.addr);
    call(by(own("http://sts.internal.example:4566/sts"), &url, "")).await.unwrap();
    let request = proxy.only_request();
    assert_eq!(request.line(), "POST http://sts.internal.example:4566/sts/ HTTP/1.1");
    assert!(request.head.to_ascii_lowercase().contains("proxy-authorization: basic bwu6chc="), "{request:?}");
}

#[tokio::test]
async fn what_is_on_this_machine_or_in_no_proxy_is_asked_directly() {
    let proxy = Stub::plain(REFUSED).await;
    for host in ["127.0.0.1", "localhost"] {
        let sts = Stub::plain(granted()).await;
        call(by(own(format!("http://{host}:{}", sts.addr.port())), &at(&proxy), "")).await.unwrap();
    }
    let sts = Stub::at("[::1]:0", None, Does::Answer(granted())).await;
    call(by(own(format!("http://[::1]:{}", sts.addr.port())), &at(&proxy), "")).await.unwrap();
    for no_proxy in ["sts.invalid", ".invalid", "other, invalid", "*"] {
        let why = away(call(by(own("https://sts.invalid"), &at(&proxy), no_proxy)).await);
        assert!(!why.contains("refused the tunnel"), "{no_proxy}: {why}");
    }
    assert!(proxy.requests().is_empty(), "{:?}", proxy.requests());
}

#[tokio::test]
async fn a_proxy_that_refuses_is_named_and_its_password_is_not() {
    for (answer, hint) in [
        (
            "HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n",
            "asks for a user and password (407)",
        ),
        (REFUSED, "refused the tunnel: does it allow CONNECT to this host"),
        ("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n", "refused the tunnel"),
        ("SSH-2.0-OpenSSH_9.2\r\n\r\n", "refused the tunnel"),
    ] {
        let proxy = Stub::plain(answer).await;
        let url = format!("http://me:s3cr3t@{}", proxy.addr);
        let why = away(call(by(Settings::default(), &url, "")).await);
        assert!(why.contains(hint) && why.contains(&at(&proxy)), "{why}");
        assert!(why.starts_with("https://sts.eu-west-1.amazonaws.com by way of"), "{why}");
        assert!(!why.contains("s3cr3t"), "{why}");
    }
    let proxy = Stub::plain("HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n").await;
    let why = away(call(by(own("http://sts.internal.example"), &at(&proxy), "")).await);
    assert!(why.contains("HTTP status 407, the proxy asks for a user and password"), "{why}");
    let gone = at(&Stub::plain("").await);
    let why = away(call(by(Settings::default(), &gone, "")).await);
    assert!(why.contains("the proxy cannot be reached") && why.contains(&gone), "{why}");
}

#[tokio::test]
async fn a_proxy_that_hangs_costs_no_more_than_an_sts_that_does() {
    let silent = Stub::at("127.0.0.1:0", None, Does::Hang).await;
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nothing = Stub::at("127.0.0.1:0", None, Does::Proxy(mute.local_addr().unwrap())).await;
    // The tunnel is never granted; it is, and nobody answers TLS inside of it.
    for proxy in [&silent, &nothing] {
        let begun = Instant::now();
        let why = away(call(by(Settings::default(), &at(proxy), "")).await);
        assert!(why.contains("no connection within 1 s") && why.contains("by way of the proxy"), "{why}");
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        assert_eq!(proxy.requests().len(), 1);
    }
    // Plain: the connection stands at once, so it is the answer that is waited for.
    let begun = Instant::now();
    let why = away(call(by(own("http://sts.internal.example"), &at(&silent), "")).await);
    assert!(why.contains("no answer within the deadline"), "{why}");
    assert!((8..11).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
}

/// Where a call would go: the proxy is asked for it, and refuses.
async fn asked(region: &str, settings: Settings, annotations: &[(&str, &str)]) -> String {
    let proxy = Stub::plain(REFUSED).await;
    let client = StsClient::new(region, by(settings, &at(&proxy), "")).unwrap();
    let partition = match region.split_once('-').unwrap() {
        ("cn", _) => "aws-cn",
        ("us", rest) if rest.starts_with("gov") => "aws-us-gov",
        ("us", rest) if rest.starts_with("isob") => "aws-iso-b",
        _ => "aws",
    };
    let plan = plan(&format!("arn:{partition}:iam::111122223333:role/web"), annotations);
    away(ask(&client, &plan).await);
    proxy.only_request().line().to_owned()
}

#[tokio::test]
async fn calls_go_to_the_endpoint_of_the_region_and_its_kind() {
    let fips = || Settings { fips: true, ..Settings::default() };
    let dual_stack = || Settings { dual_stack: true, ..Settings::default() };
    let global: &[(&str, &str)] = &[("eks.amazonaws.com/sts-regional-endpoints", "false")];
    for (region, settings, annotations, host) in [
        ("eu-west-1", Settings::default(), &[][..], "sts.eu-west-1.amazonaws.com"),
        ("eu-west-1", Settings::default(), global, "sts.amazonaws.com"),
        ("eu-west-1", fips(), &[], "sts-fips.eu-west-1.amazonaws.com"),
        ("eu-west-1", fips(), global, "sts-fips.eu-west-1.amazonaws.com"),
        ("eu-west-1", dual_stack(), global, "sts.eu-west-1.api.aws"),
        ("ap-east-1", Settings::default(), global, "sts.ap-east-1.amazonaws.com"),
        ("cn-north-1", Settings::default(), global, "sts.cn-north-1.amazonaws.com.cn"),
        ("us-gov-west-1", fips(), global, "sts.us-gov-west-1.amazonaws.com"),
        ("us-isob-east-1", Settings::default(), global, "sts.us-isob-east-1.sc2s.sgov.gov"),
        (
            "eu-west-1",
            own("https://vpce-0a1b-2c3d.sts.eu-west-1.vpce.amazonaws.com"),
            global,
            "vpce-0a1b-2c3d.sts.eu-west-1.vpce.amazonaws.com",
        ),
    ] {
        let shown = format!("{region} {settings:?} {annotations:?}");
        assert_eq!(
            asked(region, settings, annotations).await,
            format!("CONNECT {host}:443 HTTP/1.1"),
            "{shown}"
        );
    }
}
