//! `rolecall issuer` beside a real kube-apiserver: who gets a token, who does not, and who believes it.

#[path = "support/apiserver.rs"]
mod apiserver;
#[path = "support/http.rs"]
mod http;
#[path = "support/issuer.rs"]
mod issuer;
#[path = "support/site.rs"]
mod site;
#[path = "support/web_identity.rs"]
mod web_identity;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use apiserver::Pod;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use issuer::{AUDIENCE, Issuer, agent_on, server, token};
use rolecall::cluster::api::KubeApi;
use rolecall::cluster::{self, Cluster as _, client};
use rolecall::emulator::IssuerConfig;
use rolecall::identity::pods;
use rolecall::role::Claims;
use rolecall::token::issued::{Door, Issued};
use serde_json::{Value, json};
use site::oidc;
use web_identity::{ACCOUNT, Sts};

const RSA: &str = include_str!("oidc/rsa.key");
const STS: &str = "sts.amazonaws.com";

/// A key as docs/issuer.md makes it.
fn p256() -> String {
    openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"], Path::new("/"))
}

fn openssl(args: &[&str], folder: &Path) -> String {
    let output = Command::new("openssl").args(args).current_dir(folder).output().expect("openssl runs");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The namespace `name` with the ServiceAccount `web`, its pod `web-1` on the node `NAME-here`, and an agent there and on `NAME-there`.
struct Case {
    name: &'static str,
    agents: [String; 2],
}

impl Case {
    fn new(name: &'static str) -> Self {
        server().namespace(name, &[]);
        let agents = ["here", "there"].map(|node| agent_on(&format!("{name}-{node}")));
        server().service_account(name, "web", &[]);
        let case = Self { name, agents };
        case.pod("web-1");
        case
    }

    fn pod(&self, name: &str) {
        let node = format!("{}-here", self.name);
        server().pod(&Pod {
            namespace: self.name,
            name,
            service_account: "web",
            node: &node,
            ..Pod::default()
        });
    }

    /// A token of the agent on the pod's node.
    fn agent(&self) -> String {
        token("rolecall/rolecall", &self.agents[0], AUDIENCE)
    }

    /// A token of the pod.
    fn web(&self, audience: &str) -> String {
        token(&format!("{}/web", self.name), "web-1", audience)
    }
}

fn part(token: &str, number: usize) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(number).unwrap()).unwrap()).unwrap()
}

#[tokio::test]
async fn tokens_of_both_algorithms_are_believed_by_sts_and_by_openssl() {
    let case = Case::new("believed");
    for (alg, key) in [("RS256", RSA.to_owned()), ("ES256", p256())] {
        let issuer = Issuer::start(&alg.to_lowercase(), &key).await;
        let token = issuer.token(&case.agent(), &case.web(AUDIENCE)).await.token();
        assert_eq!(part(&token, 0)["alg"], alg);

        let trust = [
            "trust-policy",
            "--account",
            ACCOUNT,
            "--issuer",
            &issuer.url,
            "--service-account",
            "believed/web",
        ];
        let trust = oidc(&trust).await.json();
        let provider =
            IssuerConfig { url: issuer.url.clone(), ca_file: Some(issuer.ca()), ..IssuerConfig::default() };
        let sts = Sts::with(vec![provider], trust).await;
        assert_eq!(sts.assume(&token).await, "OK");

        let folder = tempfile::tempdir().unwrap();
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let mut signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        if alg == "ES256" {
            signature = der(&signature);
        }
        for (name, content) in
            [("key.pem", key.as_bytes()), ("signed", signed.as_bytes()), ("signature", &signature)]
        {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        openssl(&["pkey", "-in", "key.pem", "-pubout", "-out", "public.pem"], folder.path());
        let verify = ["dgst", "-sha256", "-verify", "public.pem", "-signature", "signature", "signed"];
        assert_eq!(openssl(&verify, folder.path()).trim(), "Verified OK");
        assert!(!issuer.output().contains("eyJ"), "no token in the log: {}", issuer.output());
    }
}

/// An ECDSA signature as openssl wants it: a SEQUENCE of two INTEGERs.
fn der(signature: &[u8]) -> Vec<u8> {
    let integer = |number: &[u8]| {
        let first = number.iter().position(|byte| *byte != 0).unwrap();
        let mut content = number[first..].to_vec();
        if content[0] >= 0x80 {
            content.insert(0, 0);
        }
        [&[2, content.len() as u8], &content[..]].concat()
    };
    let (r, s) = signature.split_at(signature.len() / 2);
    let both = [integer(r), integer(s)].concat();
    [&[0x30, both.len() as u8], &both[..]].concat()
}

#[tokio::test]
async fn a_token_says_what_kubernetes_would_say_of_that_pod() {
    let (case, issuer) = (Case::new("claims"), Issuer::start("claims", RSA).await);
    let kubernetes = part(&case.web(AUDIENCE), 1);
    let claims = part(&issuer.token(&case.agent(), &case.web(AUDIENCE)).await.token(), 1);
    assert_eq!(claims["iss"], issuer.url.as_str());
    assert_eq!(claims["sub"], "system:serviceaccount:claims:web");
    assert_eq!(claims["sub"], kubernetes["sub"]);
    assert_eq!(claims["aud"], json!([STS]));
    for member in ["namespace", "serviceaccount", "pod"] {
        assert_eq!(claims["kubernetes.io"][member], kubernetes["kubernetes.io"][member], "{member}");
    }
    assert_eq!(claims["kubernetes.io"]["node"]["name"], kubernetes["kubernetes.io"]["node"]["name"]);
    let seconds = |claim: &str| claims[claim].as_i64().unwrap();
    assert_eq!((seconds("exp") - seconds("iat"), seconds("nbf")), (600, seconds("iat")));
    assert_eq!(claims["jti"].as_str().unwrap().len(), 36);
    issuer.until_it_says(claims["jti"].as_str().unwrap()).await;
    let output = issuer.output();
    let line = output.lines().find(|line| line.contains(claims["jti"].as_str().unwrap())).unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    let said = |field: &str| line[field].as_str().unwrap();
    assert_eq!((said("target"), said("code"), said("pod.name")), ("audit", "ok", "web-1"));
    assert_eq!((said("agent.pod"), said("agent.node")), (&*case.agents[0], "claims-here"));
}

#[tokio::test]
async fn whoever_is_not_the_agent_of_the_pods_node_gets_nothing() {
    let (case, issuer) = (Case::new("refused"), Issuer::start("refused", RSA).await);
    let (agent, web) = (case.agent(), case.web(AUDIENCE));
    assert_eq!(issuer.token(&agent, &web).await.code(), "ok");

    let there = token("rolecall/rolecall", &case.agents[1], AUDIENCE);
    assert_eq!(issuer.token(&there, &web).await.code(), "OtherNode");
    assert_eq!(issuer.token(&web, &web).await.code(), "NotTheAgent", "a pod's own token alone");
    let nobody = issuer.ask(None, &json!({"token": web, "audience": STS})).await;
    assert_eq!((nobody.status, nobody.code()), (401, "AgentTokenRequired"));
    let unbound = token("rolecall/rolecall", "", AUDIENCE);
    assert_eq!(issuer.token(&unbound, &web).await.code(), "AgentTokenInvalid", "it names no node");
    let unbound = token("refused/web", "", AUDIENCE);
    assert_eq!(issuer.token(&agent, &unbound).await.code(), "PodTokenInvalid");
    // Another account in the agents' namespace, with a pod on the node.
    server().service_account("rolecall", "other", &[]);
    let other = Pod {
        namespace: "rolecall",
        name: "other",
        service_account: "other",
        node: "refused-here",
        ..Pod::default()
    };
    server().pod(&other);
    assert_eq!(issuer.token(&token("rolecall/other", "other", AUDIENCE), &web).await.code(), "NotTheAgent");

    for audience in [STS, "rolecall", &server().issuer()] {
        let elsewhere = token("rolecall/rolecall", &case.agents[0], audience);
        assert_eq!(issuer.token(&elsewhere, &web).await.code(), "AgentTokenInvalid", "{audience}");
        assert_eq!(issuer.token(&agent, &case.web(audience)).await.code(), "PodTokenInvalid", "{audience}");
    }
    let (head, signature) = web.rsplit_once('.').unwrap();
    let forged = format!("{head}.{}", signature.chars().rev().collect::<String>());
    assert_eq!(issuer.token(&agent, &forged).await.code(), "PodTokenInvalid");
    assert_eq!(issuer.token(&forged, &web).await.code(), "AgentTokenInvalid");
    // What the issuer signed is for STS alone.
    let own = issuer.token(&agent, &web).await.token();
    assert_eq!(issuer.token(&own, &web).await.code(), "AgentTokenInvalid");
    assert_eq!(issuer.token(&agent, &own).await.code(), "PodTokenInvalid");
    let output = issuer.output();
    assert!(!output.contains("eyJ"), "no token in the log: {output}");
}

#[tokio::test]
async fn a_token_ends_with_its_pod_and_so_does_an_agents() {
    let (case, issuer) = (Case::new("ended"), Issuer::start("ended", RSA).await);
    // The API server believes what it has just looked at for ten seconds more, so none of these was shown before.
    let (agent, web) = (case.agent(), case.web(AUDIENCE));
    server().delete_pod("ended", "web-1");
    assert_eq!(issuer.token(&agent, &web).await.code(), "PodTokenInvalid");
    case.pod("web-1");
    assert_eq!(issuer.token(&agent, &web).await.code(), "PodTokenInvalid", "another pod of that name");
    let (agent, web) = (case.agent(), case.web(AUDIENCE));
    server().delete_pod("rolecall", &case.agents[0]);
    assert_eq!(issuer.token(&agent, &web).await.code(), "AgentTokenInvalid");
}

#[tokio::test]
async fn what_is_not_understood_or_not_allowed_is_refused() {
    let (case, issuer) = (Case::new("odd"), Issuer::start("odd", RSA).await);
    let (agent, web) = (case.agent(), case.web(AUDIENCE));
    let ask = async |body: Value| issuer.ask(Some(&agent), &body).await;
    let elsewhere = ask(json!({"token": web, "audience": "vault"})).await;
    assert_eq!((elsewhere.status, elsewhere.code()), (403, "AudienceNotAllowed"));
    for body in
        [json!({}), json!("x"), json!({"token": web}), json!({"token": web, "audience": STS, "restrict": 1})]
    {
        let answer = ask(body).await;
        assert_eq!((answer.status, answer.code()), (400, "RequestNotUnderstood"));
    }
    let long = ask(json!({"token": "x".repeat(20_000), "audience": STS})).await;
    assert_eq!((long.status, long.code()), (413, "RequestTooLong"));
    let send = async |method: &str, path: &str| {
        let request = hyper::Request::builder().method(method).uri(format!("{}{path}", issuer.door()));
        issuer.send(request.body(Default::default()).unwrap()).await
    };
    let answer = send("GET", "/v1/token").await;
    assert_eq!((answer.status, answer.code()), (405, "MethodNotAllowed"));
    let answer = send("GET", "/").await;
    assert_eq!((answer.status, answer.code()), (404, "NotFound"));
}

#[tokio::test]
async fn tags_and_source_identity_are_of_what_the_api_server_says_and_sts_counts_them() {
    let (case, issuer) = (Case::new("tagged"), Issuer::start("tagged", RSA).await);
    let (agent, web) = (case.agent(), case.web(AUDIENCE));
    let ask = async |tags: &str, identity: &str| {
        let body = json!({"token": web, "audience": STS, "session_tags": tags, "source_identity": identity});
        issuer.ask(Some(&agent), &body).await
    };
    let tags = "kubernetes-namespace,kubernetes-pod-name:transitive,kubernetes-node";
    let token = ask(tags, "{namespace}.{service-account}").await.token();
    let claims = part(&token, 1);
    assert_eq!(
        claims["https://aws.amazon.com/tags"],
        json!({
            "principal_tags": {
                "kubernetes-namespace": ["tagged"], "kubernetes-pod-name": ["web-1"], "kubernetes-node": ["tagged-here"],
            },
            "transitive_tag_keys": ["kubernetes-pod-name"],
        })
    );
    assert_eq!(claims["https://aws.amazon.com/source_identity"], "tagged.web");
    issuer.until_it_says("\"source.identity\":\"tagged.web\"").await;

    let name = issuer.url.trim_start_matches("https://");
    let sts = async |actions: Value| {
        let trust = json!({"Version": "2012-10-17", "Statement": [{
            "Effect": "Allow", "Action": actions,
            "Principal": {"Federated": format!("arn:aws:iam::{ACCOUNT}:oidc-provider/{name}")},
            "Condition": {"StringEquals": {
                "aws:RequestTag/kubernetes-namespace": "tagged", "sts:SourceIdentity": "tagged.web",
            }},
        }]});
        let ca_file = Some(issuer.ca());
        let provider = IssuerConfig { url: issuer.url.clone(), ca_file, ..IssuerConfig::default() };
        Sts::with(vec![provider], trust).await
    };
    let all = ["sts:AssumeRoleWithWebIdentity", "sts:TagSession", "sts:SetSourceIdentity"];
    assert_eq!(sts(json!(all)).await.assume(&token).await, "OK");
    assert_eq!(sts(json!(all[..2])).await.assume(&token).await, "AccessDenied");
    let untagged = issuer.token(&agent, &web).await.token();
    assert_eq!(sts(json!(all)).await.assume(&untagged).await, "AccessDenied");

    for (tags, identity) in [
        ("team", "{namespace}.{service-account}"),
        ("eks-cluster-name", "{namespace}.{service-account}"),
        ("kubernetes-node", "{namespace}.{service-account}.root"),
    ] {
        let refused = ask(tags, identity).await;
        assert_eq!((refused.status, refused.code()), (403, "ClaimNotAllowed"), "{tags} {identity}");
    }
}

#[tokio::test]
async fn the_published_documents_pass_the_check_before_during_and_after_a_rotation() {
    let issuer = Issuer::start("rotated", RSA).await;
    let (folder, next) = (tempfile::tempdir().unwrap(), p256());
    let public = |name: &str, key: &str| {
        std::fs::write(folder.path().join(name), key).unwrap();
        let public = format!("{name}.pub");
        openssl(&["pkey", "-in", name, "-pubout", "-out", &public], folder.path());
        folder.path().join(public).to_str().unwrap().to_owned()
    };
    let (old, new) = (public("old", RSA), public("new", &next));
    let check = async |keys: &[&str]| {
        let ca = issuer.ca();
        let mut args = vec!["discovery", "--issuer", &issuer.url, "--check", &issuer.url];
        args.extend(["--ca-file", ca.to_str().unwrap()]);
        keys.iter().for_each(|key| args.extend(["--public-key", key]));
        oidc(&args).await
    };
    check(&[&old]).await.good();
    assert_eq!(check(&[&old, &new]).await.code, 1, "not yet");
    issuer.put("next.pem", &next);
    issuer.until_it_says("\"published\":2").await;
    check(&[&old, &new]).await.good();
    // The old key stays published; a Secret changes as one, files do not.
    issuer.put("old.pem", &std::fs::read_to_string(&old).unwrap());
    issuer.put("signing.pem", &next);
    let kid = part_of_jwk(&new).await;
    issuer.until_it_says(&format!("\"key.id\":\"{kid}\",\"published\":2")).await;
    check(&[&old, &new]).await.good();
    let case = Case::new("rotated");
    let token = issuer.token(&case.agent(), &case.web(AUDIENCE)).await.token();
    assert_eq!(part(&token, 0)["kid"], kid.as_str());
}

async fn part_of_jwk(public: &str) -> String {
    oidc(&["jwks", "--public-key", public]).await.json()["keys"][0]["kid"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_agents_own_door_brings_a_token_of_ten_minutes_and_sorts_refusals() {
    let (case, issuer) = (Case::new("door"), Issuer::start("door", RSA).await);
    let node = "door-here";
    // As the agent runs: it mints as its node, for the issuer's audience, which daemonset/issuer allows.
    let kubeconfig = server().kubeconfig_of_agent("rolecall", node, "rolecall-door");
    let kube = client::clients(&client::config(Some(&kubeconfig)).await.unwrap(), Some(node)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("token");
    let door = Door {
        url: issuer.door(),
        ca_bundle: Some(issuer.ca()),
        token_file: own.clone(),
        audience: AUDIENCE.into(),
    };
    let api = Arc::new(KubeApi::new(kube.node, node));
    let issued = Issued::new(Arc::clone(&api) as _, door.clone());
    let pods = api.pods_now().await.unwrap();
    let web: &pods::Pod = pods.iter().find(|pod| &*pod.name == "web-1").unwrap();
    let request = async |issued: &Issued| issued.request(web, STS, &Claims::default()).await;

    std::fs::write(&own, case.agent()).unwrap();
    let token = until_the_audience_counts(&issued, web).await;
    assert!((590..=600).contains(&token.remaining().as_secs()), "{token:?}");
    assert_eq!(part(token.expose(), 1)["sub"], "system:serviceaccount:door:web");
    issuer.until_it_says(token.id().unwrap()).await;

    std::fs::write(&own, case.web(AUDIENCE)).unwrap();
    let refused = request(&issued).await.unwrap_err();
    assert!(
        matches!(&refused, cluster::Error::IssuerRefused(why) if why.starts_with("NotTheAgent")),
        "{refused}"
    );
    std::fs::write(&own, case.web(STS)).unwrap();
    let passing = request(&issued).await.unwrap_err();
    assert!(
        matches!(&passing, cluster::Error::IssuerAway(why) if why.starts_with("AgentTokenInvalid")),
        "{passing}"
    );
    std::fs::write(&own, token_of_the_other(&case)).unwrap();
    let refused = request(&issued).await.unwrap_err();
    assert!(
        matches!(&refused, cluster::Error::IssuerRefused(why) if why.starts_with("OtherNode")),
        "{refused}"
    );
    std::fs::write(&own, case.agent()).unwrap();

    let elsewhere = Door { url: "https://localhost:1".into(), ..door.clone() };
    let away = request(&Issued::new(Arc::clone(&api) as _, elsewhere)).await.unwrap_err();
    assert!(matches!(away, cluster::Error::IssuerAway(_)), "{away}");
    let stranger = Door { ca_bundle: Some(issuer.ca().with_file_name("cert.pem")), ..door };
    let unproved = request(&Issued::new(api, stranger)).await.unwrap_err();
    assert!(matches!(unproved, cluster::Error::IssuerAway(_)), "{unproved}");
    server().delete_pod("door", "web-1");
    let gone = request(&issued).await.unwrap_err();
    assert!(matches!(gone, cluster::Error::PodGone(_)), "{gone}");
}

fn token_of_the_other(case: &Case) -> String {
    token("rolecall/rolecall", &case.agents[1], AUDIENCE)
}

/// A grant counts a moment after it is stored, and nothing tells when.
async fn until_the_audience_counts(issued: &Issued, pod: &pods::Pod) -> rolecall::token::BoundToken {
    let mut last = None;
    for _ in 0..100 {
        match issued.request(pod, STS, &Claims::default()).await {
            Ok(token) => return token,
            Err(error) => last = Some(error),
        }
    }
    panic!("after asking 100 times: {last:?}")
}

const PAGE: &str = include_str!("../docs/issuer.md");

#[tokio::test]
async fn the_installation_of_the_page_applies_as_it_stands_and_agents_believe_its_certificate() {
    let (_, section) = PAGE.split_once("## Install").unwrap();
    let script = section.split("```").nth(1).and_then(|block| block.strip_prefix("sh\n")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/daemonset");
    std::os::unix::fs::symlink(manifests, folder.path().join("daemonset")).unwrap();
    let agent = format!("{manifests}/3-agent.yaml");
    server().kubectl(&["apply", "--server-side", "-f", &agent]);
    let bin = server().state().join("bin");
    let run = Command::new("bash")
        .args(["-e", "-c", script])
        .current_dir(&folder)
        .env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH").unwrap()))
        .env("KUBECONFIG", server().kubeconfig())
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let deployment = server().json(&["get", "deployment", "rolecall-issuer", "-n", "rolecall"]);
    let env = &deployment["spec"]["template"]["spec"]["containers"][0]["env"][0];
    assert_eq!(env["value"], "https://my-oidc.s3.eu-central-1.amazonaws.com/cluster-a");
    let daemonset = server().json(&["get", "daemonset", "rolecall", "-n", "rolecall"]);
    assert!(daemonset.to_string().contains("ROLECALL_TOKEN_SOURCE"));

    let issuer =
        Issuer::start("installed", &std::fs::read_to_string(folder.path().join("signing.pem")).unwrap())
            .await;
    for file in ["tls.crt", "tls.key"] {
        issuer.put(file, &std::fs::read_to_string(folder.path().join(file)).unwrap());
    }
    issuer.until_it_says("new serving certificate").await;
    let tls = issuer::trusting(&folder.path().join("tls.crt"));
    let stream = tokio::net::TcpStream::connect(issuer.addr).await.unwrap();
    let name = "rolecall-issuer.rolecall.svc".try_into().unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, stream).await.unwrap();
}

#[test]
fn the_page_has_every_flag_and_every_code() {
    let help = Command::new(env!("CARGO_BIN_EXE_rolecall")).args(["issuer", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let flags: Vec<&str> =
        help.split_whitespace().filter(|word| word.starts_with("--") && *word != "--help").collect();
    let (_, section) = PAGE.split_once("\n## Flags\n").unwrap();
    let rows: Vec<&str> =
        section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let mut flags: Vec<&str> = flags.into_iter().map(|flag| flag.trim_end_matches(',')).collect();
    flags.dedup();
    assert_eq!(rows, flags);
    let codes = include_str!("../src/issuer/refusal.rs").split("fn code(&self)").nth(1).unwrap();
    for code in codes.split("\n    }\n").next().unwrap().split('"').skip(1).step_by(2) {
        assert!(PAGE.contains(&format!("`{code}`")), "{code}");
    }
}
