//! `rolecall oidc` beside a real kube-apiserver: the same keys under the same names, and tokens that an STS then believes.

#[path = "support/apiserver.rs"]
mod apiserver;
#[path = "support/http.rs"]
mod http;
#[path = "support/site.rs"]
mod site;
#[path = "support/web_identity.rs"]
mod web_identity;

use std::process::Command;

use apiserver::ApiServer;
use rolecall::emulator::IssuerConfig;
use serde_json::{Value, json};
use site::{Page, Site, ca_file, oidc};
use web_identity::{ACCOUNT, Sts};

const STS: &str = "sts.amazonaws.com";
/// What MicroK8s and kubeadm give tokens that ask for no audience.
const DEFAULT_AUDIENCE: &str = "https://kubernetes.default.svc";

fn kubeconfig() -> String {
    ApiServer::shared().kubeconfig().to_str().unwrap().to_owned()
}

fn published_keys() -> Value {
    serde_json::from_str(&ApiServer::shared().jwks()).unwrap()
}

/// The public half of the key that the server signs with, in the form of `openssl ARGS`.
fn public_key(name: &str, args: &[&str]) -> String {
    let state = ApiServer::shared().state();
    let (key, out) = (state.join("pki/sa.key"), state.join(name));
    let made = Command::new("openssl").args(args).arg("-in").arg(key).arg("-out").arg(&out).output();
    let made = made.expect("openssl runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    out.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn files_and_api_server_give_the_very_keys_that_it_publishes() {
    let asked = oidc(&["jwks", "--kubeconfig", &kubeconfig()]).await.json();
    assert_eq!(asked, published_keys());
    let spki = public_key("sa.pem", &["pkey", "-pubout"]);
    let pkcs1 = public_key("sa-pkcs1.pem", &["rsa", "-RSAPublicKey_out"]);
    for file in [&spki, &pkcs1] {
        assert_eq!(oidc(&["jwks", "--public-key", file]).await.json(), published_keys(), "{file}");
    }
    let secret = ApiServer::shared().state().join("pki/sa.key");
    assert_eq!(oidc(&["jwks", "--public-key", secret.to_str().unwrap()]).await.code, 64);
}

#[tokio::test]
async fn tokens_of_the_cluster_get_the_role_and_those_of_others_do_not() {
    let server = ApiServer::shared();
    server.namespace("oidc", &[]);
    for account in ["web", "api"] {
        server.service_account("oidc", account, &[]);
    }
    let token = |account: &str, audience: &str| {
        let args = ["create", "token", account, "-n", "oidc", "--audience", audience];
        server.kubectl(&args).trim().to_owned()
    };
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().to_str().unwrap();
    oidc(&["discovery", "--kubeconfig", &kubeconfig(), "--out", folder]).await.good();
    let provider =
        oidc(&["provider", "--cluster", &kubeconfig(), "--audience", STS, "--audience", DEFAULT_AUDIENCE])
            .await;
    let provider = provider.json();
    assert_eq!(provider["Url"], server.issuer());
    let audiences: Vec<String> = serde_json::from_value(provider["ClientIDList"].clone()).unwrap();
    for (audience, other) in [(STS, DEFAULT_AUDIENCE), (DEFAULT_AUDIENCE, STS)] {
        let policy = oidc(&[
            "trust-policy",
            "--account",
            ACCOUNT,
            "--cluster",
            &kubeconfig(),
            "--service-account",
            "oidc/web",
            "--audience",
            audience,
        ])
        .await;
        let issuer = IssuerConfig {
            url: server.issuer(),
            audiences: Some(audiences.clone()),
            jwks_file: Some(out.path().join("openid/v1/jwks")),
            ..IssuerConfig::default()
        };
        let sts = Sts::with(vec![issuer], policy.json()).await;
        assert_eq!(sts.assume(&token("web", audience)).await, "OK");
        assert_eq!(sts.assume(&token("api", audience)).await, "AccessDenied");
        assert_eq!(sts.assume(&token("web", other)).await, "AccessDenied");
        assert_eq!(sts.assume(&token("web", "vault")).await, "InvalidIdentityToken");
    }
}

#[tokio::test]
async fn the_check_compares_with_what_the_api_server_signs_with() {
    let (server, site) = (ApiServer::shared(), Site::https().await);
    let mut document = oidc(&["discovery", "--kubeconfig", &kubeconfig()]).await.json();
    assert_eq!(document["issuer"], server.issuer());
    // The test's issuer is a name that nothing on this machine answers to, so the document names the host that does.
    document["jwks_uri"] = format!("{}/keys.json", site.url()).into();
    site.pages.put("/.well-known/openid-configuration", Page::json(&document));
    site.pages.put("/keys.json", Page::json(published_keys()));
    let check = async || {
        let ca = ca_file();
        let args = ["--kubeconfig", &kubeconfig(), "--check", &site.url(), "--ca-file", ca.to_str().unwrap()];
        oidc(&[&["discovery"], &args[..]].concat()).await
    };
    check().await.good();

    site.pages.put("/keys.json", Page::json(json!({"keys": []})));
    let kid = published_keys()["keys"][0]["kid"].as_str().unwrap().to_owned();
    let said = check().await;
    assert_eq!(said.code, 1);
    assert!(
        said.out.contains(&format!("key \"{kid}\" is missing; tokens signed with it are refused")),
        "{}",
        said.out
    );

    document["issuer"] = site.url().into();
    site.pages.put("/.well-known/openid-configuration", Page::json(&document));
    let said = check().await;
    assert!(said.out.contains(&format!("tokens say {:?}", server.issuer())), "{}", said.out);
}

#[test]
fn the_walkthrough_works_as_it_stands() {
    let (_, page) =
        include_str!("../docs/oidc.md").split_once("## Try it here").expect("the page has the section");
    let script =
        page.split("```").nth(1).and_then(|block| block.strip_prefix("sh\n")).expect("and its commands");
    // The emulator's default port may be taken here; the namespace is the page's own.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    assert_eq!(script.matches(":9910").count(), 1);
    let script = script
        .replace(":9910", &format!(":{port}"))
        .replace("--config sts.yaml", &format!("--config sts.yaml --listen 127.0.0.1:{port}"));
    // The emulator ends with the script, also when a line of it fails.
    let script = format!("trap 'kill %1 2>/dev/null || true' EXIT\n{script}");
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_rolecall")).parent().unwrap();
    let kubectl = ApiServer::shared().state().join("bin");
    let path = format!("{}:{}:{}", binary.display(), kubectl.display(), std::env::var("PATH").unwrap());
    let folder = tempfile::tempdir().unwrap();
    let run = Command::new("bash")
        .args(["-e", "-m", "-c", &script])
        .current_dir(&folder)
        .env("PATH", path)
        .env("KUBECONFIG", kubeconfig())
        .output()
        .expect("bash runs");
    let said = format!("{}\n{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{said}");
    let (good, refused) =
        said.split_once("</AssumeRoleWithWebIdentityResponse>").unwrap_or_else(|| panic!("{said}"));
    assert!(good.contains("<Arn>arn:aws:sts::111122223333:assumed-role/web/try</Arn>"), "{said}");
    assert!(refused.contains("<Code>AccessDenied</Code>"), "{said}");
}

#[tokio::test]
async fn documents_for_an_issuer_to_come_have_the_keys_of_today() {
    let args = ["discovery", "--kubeconfig", &kubeconfig(), "--issuer", "https://oidc.example.com/a"];
    let document = oidc(&args).await.json();
    assert_eq!(document["jwks_uri"], "https://oidc.example.com/a/openid/v1/jwks");
    assert_eq!(document["id_token_signing_alg_values_supported"], json!(["RS256"]));
}

#[tokio::test]
async fn an_api_server_that_is_away_or_says_no_is_a_failure_with_its_reason() {
    let server = ApiServer::shared();
    let mut config = server.json(&["config", "view", "--raw", "--flatten"]);
    let path = server.state().join("changed.kubeconfig");
    let jwks = async |config: &Value| {
        std::fs::write(&path, config.to_string()).unwrap();
        oidc(&["jwks", "--kubeconfig", path.to_str().unwrap()]).await
    };
    let user = std::mem::replace(&mut config["users"][0]["user"], json!({}));
    let nobody = jwks(&config).await;
    assert_eq!(nobody.code, 1);
    assert!(nobody.err.contains("system:service-account-issuer-discovery"), "{}", nobody.err);
    config["users"][0]["user"] = user;
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1".into();
    let away = jwks(&config).await;
    assert_eq!(away.code, 1);
    assert!(away.err.contains("error: the API server's /.well-known/openid-configuration: "), "{}", away.err);
}
