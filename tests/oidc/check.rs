//! `--check` against a host that publishes something else than it should.

use serde_json::{Value, json};

use crate::site::{Page, Said, Site, ca_file, oidc};
use crate::{DISCOVERY, JWKS, RSA_KID, jwks, key};

/// What a test does to a document and to how it is served.
type Change = fn(&mut Page, &mut Value);

/// An issuer that is published as it should be, and whatever a test then does to it.
struct Published {
    site: Site,
    issuer: String,
    keys: Vec<&'static str>,
}

impl Published {
    async fn new() -> Self {
        let site = Site::https().await;
        let published = Self { issuer: site.url(), site, keys: vec!["rsa.pem", "p256.pem"] };
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().to_str().unwrap();
        published.run(&["--out", out]).await.good();
        published.site.pages.put_folder("", folder.path(), &[DISCOVERY, JWKS]);
        published
    }

    async fn run(&self, flags: &[&str]) -> Said {
        let keys = self.keys.iter().flat_map(|name| ["--public-key".to_owned(), key(name)]);
        let flags = ["discovery", "--issuer", &self.issuer].into_iter().chain(flags.iter().copied());
        oidc(&flags.map(str::to_owned).chain(keys).collect::<Vec<_>>()).await
    }

    async fn check(&self) -> Said {
        self.check_at(&self.site.url()).await
    }

    async fn check_at(&self, url: &str) -> Said {
        self.run(&["--check", url, "--ca-file", ca_file().to_str().unwrap()]).await
    }

    /// Puts a changed document at `path`.
    async fn change(&self, path: &str, change: impl FnOnce(&mut Page, &mut Value)) {
        let mut document = match path {
            DISCOVERY => self.run(&[]).await.json(),
            _ => jwks(&self.keys, &[]).await.json(),
        };
        let mut page = Page::json("");
        change(&mut page, &mut document);
        if page.body.is_empty() {
            page.body = document.to_string();
        }
        self.site.pages.put(&format!("/{path}"), page);
    }

    async fn discovery_with(change: Change) -> Said {
        let published = Self::new().await;
        published.change(DISCOVERY, change).await;
        published.check().await
    }

    async fn keys_with(change: Change) -> Said {
        let published = Self::new().await;
        published.change(JWKS, change).await;
        published.check().await
    }
}

/// Exactly one difference is told, and it says this.
#[track_caller]
fn assert_differs(said: &Said, what: &str) {
    assert_eq!(said.code, 1, "{said:?}");
    assert_eq!(said.out.matches("differs: ").count(), 1, "{}", said.out);
    assert!(said.out.contains(what), "{what}: {}", said.out);
}

#[tokio::test]
async fn what_is_published_right_passes_the_check() {
    let published = Published::new().await;
    let said = published.check().await.good();
    assert!(said.contains("publishes what tokens are signed with: 2 keys"), "{said}");
    let slash = published.check_at(&format!("{}/", published.issuer)).await;
    assert_eq!(slash.code, 0, "{slash:?}");
    published
        .change(JWKS, |page, _| {
            page.headers = vec![("content-type", "application/jwk-set+json; charset=utf-8".into())]
        })
        .await;
    published.check().await.good();
}

#[tokio::test]
async fn every_difference_of_the_discovery_document_is_told() {
    let with = Published::discovery_with;
    assert_differs(
        &with(|_, d| d["issuer"] = "https://old.example.com".into()).await,
        "it is for the issuer \"https://old.example.com\"; tokens say",
    );
    assert_differs(&with(|_, d| d["issuer"] = json!(1)).await, "no issuer or no jwks_uri");
    assert_differs(
        &with(|_, d| d["id_token_signing_alg_values_supported"] = json!(["RS256"])).await,
        "lacks ES256",
    );
    assert_differs(
        &with(|_, d| d["jwks_uri"] = "https://localhost:1/keys".into()).await,
        "it cannot be fetched: https://localhost:1/keys",
    );
    assert_differs(
        &with(|page, _| page.headers = vec![("content-type", "binary/octet-stream".into())]).await,
        "Content-Type is \"binary/octet-stream\"",
    );
    assert_differs(&with(|page, _| page.headers.clear()).await, "Content-Type is \"\"");
    assert_differs(&with(|page, _| page.body = "<html>".into()).await, "it is not JSON");
    assert_differs(&with(|page, _| page.body = " ".repeat(300_000)).await, "length limit exceeded");
    assert_differs(&with(|page, _| page.status = 403).await, "status 403; everybody must be able to read it");
    assert_differs(&with(|page, _| page.status = 500).await, "status 500");
    let moved = |page: &mut Page, _: &mut Value| {
        page.status = 301;
        page.headers.push(("location", "https://elsewhere.example.com/".into()));
    };
    assert_differs(&with(moved).await, "status 301 sends on to https://elsewhere.example.com/");
}

#[tokio::test]
async fn what_a_host_says_cannot_steer_the_terminal() {
    let said = Published::discovery_with(|_, d| d["jwks_uri"] = "https://a\u{1b}[2J\n".into()).await;
    assert_differs(&said, "https://a?[2J?: not a URL");
}

#[tokio::test]
async fn every_difference_of_the_keys_is_told() {
    let with = Published::keys_with;
    let missing = |_: &mut Page, jwks: &mut Value| drop(jwks["keys"].as_array_mut().unwrap().remove(0));
    assert_differs(
        &with(missing).await,
        &format!("key \"{RSA_KID}\" is missing; tokens signed with it are refused"),
    );
    assert_differs(&with(|_, jwks| jwks["keys"][0]["n"] = "AQAB".into()).await, "is another key there");
    assert_differs(
        &with(|_, jwks| jwks["keys"][0]["use"] = "enc".into()).await,
        "is published for another use",
    );
    assert_differs(
        &with(|_, jwks| jwks["keys"][0]["alg"] = "RS512".into()).await,
        "is published for another use",
    );
    assert_differs(&with(|_, jwks| jwks["keys"][0]["d"] = "AQAB".into()).await, "with its PRIVATE half");
    assert_differs(&with(|_, jwks| *jwks = json!({"keys": {}})).await, "it is no JWKS");
    let rotated = with(|_, jwks| {
        let mut old = jwks["keys"][0].clone();
        old["kid"] = "old".into();
        jwks["keys"].as_array_mut().unwrap().push(old);
    })
    .await;
    assert!(
        rotated.err.contains("note: ") && rotated.err.contains("key \"old\" is published too"),
        "{rotated:?}"
    );
    rotated.good();

    let published = Published::new().await;
    let ca = ca_file();
    let nameless = published
        .run(&["--empty-kid", "--check", &published.issuer, "--ca-file", ca.to_str().unwrap()])
        .await;
    assert_eq!(nameless.out.matches("the key with the empty id is missing").count(), 2, "{nameless:?}");
}

#[tokio::test]
async fn plain_http_an_unknown_ca_and_silence_are_differences() {
    let published = Published::new().await;
    let plain = Site::serve(&[]).await;
    let document = published.run(&[]).await.json();
    plain.pages.put(&format!("/{DISCOVERY}"), Page::json(document));
    assert_differs(
        &published.check_at(&plain.url()).await,
        "is not https, and STS fetches over nothing else",
    );

    // The system's roots do not have the test's CA.
    let unknown = published.run(&["--check", &published.issuer]).await;
    assert_differs(&unknown, "it cannot be fetched");
    assert!(unknown.out.contains("certificate"), "{}", unknown.out);

    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = published.check_at(&format!("https://{}", silent.local_addr().unwrap())).await;
    assert_differs(&silent, "no answer within 5 s");

    let bad = published.run(&["--check", "ftp://a", "--ca-file", &key("rsa.pem")]).await;
    assert_eq!(bad.code, 64, "{bad:?}");
    assert!(bad.err.contains("--check: \"ftp://a\"") && bad.err.contains("--ca-file: "), "{}", bad.err);
}
