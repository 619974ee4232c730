//! Instance metadata as bytes on a socket: what SDKs without any variable get, and what nobody gets.
// clippy.toml allows it in tests, and does not know their helpers for such.

#[path = "support/endpoint.rs"]
mod endpoint;
#[path = "support/http.rs"]
mod http;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use rolecall::cluster::{self, node::Facts};
use rolecall::fakes::{ROLE, World, denied, pod};
use rolecall::identity::pods::Pod;
use rolecall::server::imds::Settings;
use rolecall::server::imds::token::Key;
use rolecall::sts;
use tokio::net::TcpStream;
use tokio::time::Instant;

use self::endpoint::{Agent, Lines, WEB, serve_imds};
use self::http::{Answer, ask, connect, get};

/// The name of [`ROLE`].
const NAME: &str = "demo";
const LIST: &str = "/latest/meta-data/iam/security-credentials/";
/// The longest that a request is held, and what a busy machine adds.
const HELD: std::ops::Range<Duration> = Duration::from_millis(400)..Duration::from_millis(700);

fn settings() -> Settings {
    Settings { key: Key::random(), v1: false, facts: Arc::default(), passthrough: None }
}

fn agent() -> Agent {
    agent_with(settings(), |_| {})
}

fn agent_with(settings: Settings, set_up: impl FnOnce(&World)) -> Agent {
    let lines = Lines::default();
    let world = World::writing_to(lines.clone());
    world.pod_with_role("web", WEB);
    set_up(&world);
    serve_imds(world, lines, settings)
}

/// What an SDK sends: the address that it dialled stands in Host.
fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> String {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("{method} {path} HTTP/1.1\r\nHost: 169.254.169.254\r\n{headers}\r\n")
}

fn put(ttl: &str) -> String {
    request("PUT", "/latest/api/token", &[("x-aws-ec2-metadata-token-ttl-seconds", ttl)])
}

impl Agent {
    async fn token(&self, from: &str) -> String {
        let answer = get(from, self.address, &put("21600")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body
    }

    async fn read(&self, from: &str, path: &str, token: &str) -> Answer {
        get(from, self.address, &request("GET", path, &[("X-aws-ec2-metadata-token", token)])).await
    }
}

fn status_and_code(answer: &Answer) -> (u16, &str) {
    (answer.status, answer.body.split(':').next().unwrap())
}

#[tokio::test]
async fn an_sdks_three_requests_bring_the_pods_own_role() {
    let agent = agent();
    // None of Java, Rust and C++ sends a length with it.
    let answer = get(WEB, agent.address, &put("300")).await;
    assert_eq!((answer.status, answer.header("x-aws-ec2-metadata-token-ttl-seconds")), (200, Some("300")));
    let token = answer.body;
    for list in [LIST, LIST.trim_end_matches('/')] {
        let answer = agent.read(WEB, list, &token).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, NAME), "no newline: Rust panics on one");
        assert_eq!(answer.header("content-type"), Some("text/plain"));
    }
    let answer = agent.read(WEB, &format!("{LIST}{NAME}"), &token).await;
    assert_eq!((answer.status, answer.header("cache-control")), (200, Some("no-store")));
    let document = answer.json();
    let fields: Vec<&String> = document.as_object().unwrap().keys().collect();
    let expected = ["AccessKeyId", "Code", "Expiration", "LastUpdated", "SecretAccessKey", "Token", "Type"];
    assert_eq!(fields, expected);
    assert_eq!((&document["Code"], &document["Type"]), (&"Success".into(), &"AWS-HMAC".into()));
    assert_eq!(document["AccessKeyId"], "ASIA0001.web");
    for time in ["Expiration", "LastUpdated"] {
        let time = document[time].as_str().unwrap();
        assert!(time.len() == "2026-11-22T05:00:00Z".len() && time.ends_with('Z'), "{time}");
    }
    let again = agent.read(WEB, &format!("{LIST}{NAME}"), &token).await;
    assert_eq!(again.body, answer.body);
    assert_eq!(agent.sts.calls(), 1);
    let lines = agent.lines.wait_for(1).await;
    assert_eq!((&lines[0]["code"], &lines[0]["endpoint"]), (&"ok".into(), &"imds".into()));
    assert_eq!(agent.series("rolecall_requests_total{code=\"ok\",endpoint=\"imds\"}"), 5.0);
}

#[tokio::test]
async fn every_life_of_a_token_that_sdks_ask_for_is_given_and_no_other() {
    let agent = agent();
    for ttl in ["1", "300", "600", "21600"] {
        let answer = get(WEB, agent.address, &put(ttl)).await;
        assert_eq!((answer.status, answer.header("x-aws-ec2-metadata-token-ttl-seconds")), (200, Some(ttl)));
    }
    for ttl in ["0", "21601", "-1", "an hour", "", "99999999999999999999999"] {
        let answer = get(WEB, agent.address, &put(ttl)).await;
        assert_eq!(status_and_code(&answer), (400, "MetadataTokenTtl"), "{ttl}");
    }
    let absent = get(WEB, agent.address, &request("PUT", "/latest/api/token", &[])).await;
    assert_eq!(absent.status, 400);
}

#[tokio::test]
async fn a_request_without_its_own_pods_token_is_401() {
    let agent = agent_with(settings(), |world| {
        world.add_pod(pod("api", "127.0.0.8"));
        world.annotate("api", &[("rolecall.dev/role-arn", ROLE)]);
    });
    let token = agent.token(WEB).await;
    assert_eq!(agent.read(WEB, LIST, &token).await.status, 200);
    for (from, token) in [("127.0.0.8", &*token), (WEB, "AAAA"), (WEB, ""), (WEB, "\u{e9}")] {
        for path in [LIST, "/latest/meta-data/iam/security-credentials/demo", "/latest/meta-data/"] {
            let answer = agent.read(from, path, token).await;
            assert_eq!(status_and_code(&answer), (401, "MetadataTokenInvalid"), "{from} {token:?} {path}");
        }
    }
    let answer = get(WEB, agent.address, &request("GET", LIST, &[])).await;
    assert_eq!(status_and_code(&answer), (401, "MetadataTokenRequired"));
    let text = agent.lines.wait_for(2).await.iter().map(ToString::to_string).collect::<String>();
    assert!(!text.contains(&token), "{text}");
}

#[tokio::test]
async fn a_token_expires() {
    let agent = agent();
    let token = get(WEB, agent.address, &put("1")).await.body;
    let begun = Instant::now();
    while agent.read(WEB, LIST, &token).await.status == 200 {
        assert!(begun.elapsed() < Duration::from_secs(5));
        tokio::task::yield_now().await;
    }
    assert_eq!(agent.read(WEB, LIST, &token).await.status, 401);
}

#[tokio::test]
async fn the_next_agents_of_a_node_take_its_tokens_and_another_nodes_do_not() {
    let node = tempfile::tempdir().unwrap();
    let on_node = || {
        let key = Key::load_or_make(node.path()).unwrap();
        agent_with(Settings { key, ..settings() }, |_| {})
    };
    let token = on_node().token(WEB).await;
    assert_eq!(on_node().read(WEB, LIST, &token).await.status, 200);
    assert_eq!(agent().read(WEB, LIST, &token).await.status, 401);
}

#[tokio::test]
async fn version_1_is_answered_by_choice_alone() {
    let agent = agent_with(Settings { v1: true, ..settings() }, |_| {});
    let answer = get(WEB, agent.address, &request("GET", LIST, &[])).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, NAME));
    let document = get(WEB, agent.address, &request("GET", &format!("{LIST}{NAME}"), &[])).await;
    assert_eq!(document.json()["AccessKeyId"], "ASIA0001.web");
    // Who shows one all the same must show a good one.
    assert_eq!(agent.read(WEB, LIST, "AAAA").await.status, 401);
}

#[tokio::test]
async fn a_token_is_given_at_once_or_within_the_hold_whatever_is_away() {
    for trouble in ["sts", "kube", "no role", "not allowed"] {
        let agent = agent_with(settings(), |world| match trouble {
            "sts" => world.sts.slow(Duration::from_secs(60)),
            "kube" => world.cluster.fail(Some(cluster::Error::Away("it hangs".into()))),
            "no role" => world.annotate("web", &[]),
            _ => world.sts.fail(Some(denied())),
        });
        let begun = Instant::now();
        let answer = get(WEB, agent.address, &put("21600")).await;
        assert_eq!(answer.status, 200, "{trouble}: {answer:?}");
        assert!(begun.elapsed() < HELD.end, "{trouble}: {:?}", begun.elapsed());
    }
    // Nor does it matter whether the pod is known: the API server may show it late.
    let agent = agent();
    let answer = get("127.0.0.99", agent.address, &put("21600")).await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn the_wait_for_sts_is_spent_over_the_three_requests() {
    let agent = agent_with(settings(), |world| world.sts.slow(Duration::from_millis(1100)));
    // No pod has been fetched for yet but by this very sequence.
    let mut stream = connect(WEB, agent.address).await;
    let mut longest = Duration::ZERO;
    let mut step = async |request: String| {
        let begun = Instant::now();
        let answer = ask(&mut stream, &request).await.unwrap();
        longest = longest.max(begun.elapsed());
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body
    };
    let token = step(put("21600")).await;
    let headers = [("X-aws-ec2-metadata-token", &*token)];
    assert_eq!(step(request("GET", LIST, &headers)).await, NAME);
    let document = step(request("GET", &format!("{LIST}{NAME}"), &headers)).await;
    assert!(document.contains("ASIA0001.web"));
    assert!(HELD.contains(&longest), "Go v2 waits half a second: {longest:?}");
    assert_eq!(agent.sts.calls(), 1);
}

#[tokio::test]
async fn passing_trouble_is_503_after_the_hold_and_the_next_sequence_is_good() {
    let agent = agent_with(settings(), |world| world.sts.slow(Duration::from_millis(1600)));
    let token = agent.token(WEB).await;
    assert_eq!(agent.read(WEB, LIST, &token).await.body, NAME);
    let late = agent.read(WEB, &format!("{LIST}{NAME}"), &token).await;
    assert_eq!(status_and_code(&late), (503, "StsUnavailable"));
    assert_eq!(late.header("retry-after"), Some("1"));
    assert_eq!(agent.read(WEB, &format!("{LIST}{NAME}"), &token).await.status, 200);
    assert_eq!(agent.sts.calls(), 1);
}

#[tokio::test]
async fn while_the_plan_is_not_known_the_list_is_503_and_never_empty() {
    let agent = agent_with(settings(), |world| world.add_pod(pod("new", "127.0.0.8")));
    let token = agent.token("127.0.0.8").await;
    let answer = agent.read("127.0.0.8", LIST, &token).await;
    assert_eq!(status_and_code(&answer), (503, "KubeUnavailable"));
}

#[tokio::test]
async fn refusals_are_plain_text_with_the_reason_in_the_audit_line() {
    let agent = agent_with(settings(), |world| {
        world.add_pod(pod("plain", "127.0.0.8"));
        world.annotate("plain", &[]);
        world.add_pod(pod("typo", "127.0.0.9"));
        world.annotate("typo", &[("rolecall.dev/role-arn", "demo")]);
        world.sts.fail(Some(denied()));
    });
    let document = format!("{LIST}{NAME}");
    for (from, path, status, code) in [
        ("127.0.0.8", LIST, 404, "NoRole"),
        ("127.0.0.9", LIST, 400, "InvalidRole"),
        (WEB, &*document, 403, "StsDenied"),
    ] {
        let token = agent.token(from).await;
        let answer = agent.read(from, path, &token).await;
        assert_eq!(status_and_code(&answer), (status, code), "{answer:?}");
        assert_eq!(answer.header("content-type"), Some("text/plain"));
        assert!(!answer.body.contains('\n'));
    }
    let lines = agent.lines.wait_for(3).await;
    assert!(lines.iter().all(|line| line["endpoint"] == "imds"), "{lines:?}");
    let answer = agent.read(WEB, &document, &agent.token(WEB).await).await;
    assert!(answer.body.contains(lines[2]["request_id"].as_str().unwrap()), "{answer:?}");
    // What STS refuses is listed nonetheless, and says so when it is asked for.
    assert_eq!(agent.read(WEB, LIST, &agent.token(WEB).await).await.body, NAME);
}

#[tokio::test]
async fn the_host_itself_has_no_role() {
    let agent = agent();
    let token = agent.token("127.0.0.1").await;
    let answer = agent.read("127.0.0.1", LIST, &token).await;
    assert_eq!(status_and_code(&answer), (403, "CallerNotIdentified"));
}

#[tokio::test]
async fn the_document_has_the_pods_own_role_name_and_no_other() {
    let agent = agent_with(settings(), |world| {
        world
            .annotate("web", &[("rolecall.dev/role-arn", "arn:aws:iam::123456789012:role/a/path/with+sign")]);
    });
    let token = agent.token(WEB).await;
    assert_eq!(agent.read(WEB, LIST, &token).await.body, "with+sign");
    for (name, status) in
        [("with+sign", 200), ("with%2Bsign", 200), ("with", 404), ("a/path/with+sign", 404), ("node", 404)]
    {
        assert_eq!(agent.read(WEB, &format!("{LIST}{name}"), &token).await.status, status, "{name}");
    }
    assert_eq!(agent.sts.calls(), 1);
}

#[tokio::test]
async fn facts_are_given_once_they_are_known_and_nothing_else_ever() {
    let facts: Arc<ArcSwap<Facts>> = Arc::default();
    let agent = agent_with(Settings { facts: Arc::clone(&facts), ..settings() }, |_| {});
    let token = agent.token(WEB).await;
    let known = [
        ("placement/region", "eu-central-1"),
        ("placement/availability-zone", "eu-central-1a"),
        ("placement/availability-zone/", "eu-central-1a"),
        ("placement/availability-zone-id", "euc1-az2"),
        ("instance-type", "m7g.large"),
        ("instance-id", "i-0abc"),
    ];
    for (path, _) in known {
        assert_eq!(agent.read(WEB, &format!("/latest/meta-data/{path}"), &token).await.status, 404, "{path}");
    }
    let some = |text: &str| Some(text.into());
    facts.store(Arc::new(Facts {
        region: some("eu-central-1"),
        zone: some("eu-central-1a"),
        zone_id: some("euc1-az2"),
        instance_type: some("m7g.large"),
        instance_id: some("i-0abc"),
    }));
    for (path, value) in known {
        let answer = agent.read(WEB, &format!("/latest/meta-data/{path}"), &token).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, value), "{path}");
    }
    let document = agent.read(WEB, "/latest/dynamic/instance-identity/document", &token).await.json();
    assert_eq!(document["region"], "eu-central-1");
    let listed = agent.read(WEB, "/latest/meta-data/", &token).await.body;
    assert_eq!(listed, "iam/\ninstance-id\ninstance-type\nplacement/");
    for path in [
        "/",
        "/latest/user-data",
        "/latest/meta-data/iam/info",
        "/latest/meta-data/hostname",
        "/latest/meta-data/iam/security-credentials/../../../user-data",
        "/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance",
        "/latest/dynamic/instance-identity/pkcs7",
        "/latest/meta-data/placement/region?x=1",
        "/v1/credentials",
    ] {
        assert_eq!(status_and_code(&agent.read(WEB, path, &token).await), (404, "NotFound"), "{path}");
    }
}

#[tokio::test]
async fn what_a_proxy_or_a_browser_sends_is_refused_and_so_is_a_rebound_name() {
    let agent = agent();
    let ttl = ("x-aws-ec2-metadata-token-ttl-seconds", "60");
    for header in ["X-Forwarded-For", "Forwarded", "Origin", "Referer", "Sec-Fetch-Mode"] {
        let answer =
            get(WEB, agent.address, &request("PUT", "/latest/api/token", &[ttl, (header, "x")])).await;
        assert_eq!(status_and_code(&answer), (403, "RequestNotDirect"), "{header}");
    }
    for host in ["evil.example.com", "169.254.169.254.nip.io", "10.0.0.1"] {
        let rebound = put("60").replace("Host: 169.254.169.254", &format!("Host: {host}"));
        assert_eq!(get(WEB, agent.address, &rebound).await.status, 403, "{host}");
    }
    for host in ["169.254.169.254:80", "[fd00:ec2::254]", &agent.address.to_string()] {
        let direct = put("60").replace("Host: 169.254.169.254", &format!("Host: {host}"));
        assert_eq!(get(WEB, agent.address, &direct).await.status, 200, "{host}");
    }
    let token = agent.token(WEB).await;
    for (method, path) in
        [("PUT", LIST), ("POST", "/latest/api/token"), ("GET", "/latest/api/token"), ("DELETE", LIST)]
    {
        let headers = [("X-aws-ec2-metadata-token", &*token), ("Content-Length", "0")];
        let answer = get(WEB, agent.address, &request(method, path, &headers)).await;
        assert_eq!(status_and_code(&answer), (405, "MethodNotAllowed"), "{method} {path}");
    }
}

#[tokio::test]
async fn every_refusal_shows_which_agent_it_is() {
    let agent = agent();
    let answer = get(WEB, agent.address, &request("GET", "/", &[])).await;
    assert!(
        answer.status == 404 && answer.header("x-rolecall-instance").is_some(),
        "`net verify` knows us by it"
    );
}

#[tokio::test]
async fn a_pod_that_was_not_asked_for_is_fetched_for_ahead() {
    let agent = agent_with(settings(), |world| {
        world.add_pod(Pod { asks: false, ..pod("quiet", "127.0.0.8") });
        world.annotate("quiet", &[("rolecall.dev/role-arn", ROLE)]);
    });
    let begun = Instant::now();
    while agent.sts.calls() < 2 {
        assert!(begun.elapsed() < Duration::from_secs(5));
        tokio::task::yield_now().await;
    }
    let token = agent.token("127.0.0.8").await;
    assert_eq!(agent.read("127.0.0.8", &format!("{LIST}{NAME}"), &token).await.status, 200);
    assert_eq!(agent.sts.calls(), 2);
}

/// So many connections that say nothing that its next one is beyond its pod's share.
async fn crowd(agent: &Agent) -> Vec<TcpStream> {
    join_all((0..241).map(|_| connect(WEB, agent.address))).await
}

#[tokio::test]
async fn beyond_its_connections_a_pod_has_its_token_and_503_for_all_else() {
    let agent = agent();
    let crowd = crowd(&agent).await;
    let refused = agent.read(WEB, LIST, "AAAA").await;
    assert_eq!(status_and_code(&refused), (503, "Overloaded"));
    assert_eq!((refused.header("retry-after"), refused.header("connection")), (Some("1"), Some("close")));
    let given = get(WEB, agent.address, &put("300")).await;
    assert_eq!((given.status, given.header("connection")), (200, Some("close")), "{given:?}");
    // Nobody has looked whose address it is, so it is for the next requests alone.
    assert_eq!(given.header("x-aws-ec2-metadata-token-ttl-seconds"), Some("60"));
    // It is no way around what a PUT must be.
    let ttl = ("x-aws-ec2-metadata-token-ttl-seconds", "300");
    let forged = request("PUT", "/latest/api/token", &[ttl, ("X-Forwarded-For", "10.0.0.1")]);
    assert_eq!(get(WEB, agent.address, &forged).await.status, 403);
    assert_eq!(get(WEB, agent.address, &put("0")).await.status, 400);
    drop(crowd);
    let begun = Instant::now();
    let mut listed = agent.read(WEB, LIST, &given.body).await;
    while listed.status == 503 && begun.elapsed() < Duration::from_secs(5) {
        listed = agent.read(WEB, LIST, &given.body).await;
    }
    assert_eq!((listed.status, &*listed.body), (200, NAME), "a token like any other");
}

#[tokio::test]
async fn however_many_puts_come_at_once_none_is_answered_5xx() {
    let agent = agent();
    let _crowd = crowd(&agent).await;
    let put = put("300");
    let one = async || ask(&mut connect(WEB, agent.address).await, &put).await.map(|answer| answer.status);
    let answers = join_all((0..400).map(|_| one())).await;
    // Who finds no room at all is told nothing: that is no 5xx.
    assert!(answers.iter().flatten().all(|status| *status == 200), "{answers:?}");
    assert!(answers.contains(&Some(200)));
}

#[tokio::test]
async fn an_sts_that_is_away_is_told_from_one_that_refuses() {
    let agent = agent_with(settings(), |world| world.sts.fail(Some(sts::Error::Away("it hangs up".into()))));
    let token = agent.token(WEB).await;
    let answer = agent.read(WEB, &format!("{LIST}{NAME}"), &token).await;
    assert_eq!(status_and_code(&answer), (503, "StsUnavailable"));
    assert!(!answer.body.contains("hangs up"), "upstream texts stay in the log");
}
