//! Where calls go: paths, ports, literals, private authorities; and what is said where they do not get there.

use std::path::PathBuf;

use super::*;
use crate::pki::{Authority, put};
use crate::stub::{Does, Stub};

#[tokio::test]
async fn a_path_prefix_is_asked_as_the_sdks_ask_it() {
    for (path, asked) in [("", "/"), ("/", "/"), ("/sts", "/sts/"), ("/sts/", "/sts/"), ("/a/b", "/a/b/")] {
        let sts = Stub::plain(granted()).await;
        call(own(format!("http://{}{path}", sts.addr))).await.unwrap();
        let request = sts.only_request();
        assert_eq!(request.line(), format!("POST {asked} HTTP/1.1"), "{path:?}");
        assert!(request.body.contains("Action=AssumeRoleWithWebIdentity"), "{request:?}");
    }
}

#[tokio::test]
async fn an_ipv6_literal_is_asked_plain_and_over_tls() {
    let plain = Stub::at("[::1]:0", None, Does::Answer(granted())).await;
    call(own(format!("http://[::1]:{}", plain.addr.port()))).await.unwrap();
    let authority = Authority::new();
    let tls = Stub::at("[::1]:0", Some(&authority.leaf("IP:::1")), Does::Answer(granted())).await;
    call(believing(format!("https://[::1]:{}", tls.addr.port()), &authority)).await.unwrap();
}

#[tokio::test]
async fn a_private_authority_is_believed_once_it_is_in_the_bundle() {
    let authority = Authority::new();
    let sts = Stub::tls(&authority.leaf("DNS:localhost"), granted()).await;
    let url = format!("https://localhost:{}/sts/", sts.addr.port());
    let credentials = call(believing(&url, &authority)).await.unwrap();
    assert_eq!(credentials.access_key_id, "ASIAEXAMPLE");
    for settings in [own(&url), believing(&url, &Authority::new())] {
        let why = away(call(settings).await);
        assert!(why.contains("put its CA into --sts-ca-bundle") && why.contains(&url), "{why}");
    }
    assert_eq!(sts.requests().len(), 1, "a token is shown to nobody who is not believed");
}

#[tokio::test]
async fn a_certificate_that_is_not_good_is_told_from_one_that_is_not_believed() {
    let authority = Authority::new();
    for (leaf, hint) in [
        (authority.leaf("DNS:sts.internal.example"), "--sts-endpoint-url must have one of the certificate's"),
        (
            authority.leaf_until("DNS:localhost", "20200601000000Z"),
            "has expired, or this node's clock is ahead",
        ),
    ] {
        let sts = Stub::tls(&leaf, granted()).await;
        let why = away(call(believing(format!("https://localhost:{}", sts.addr.port()), &authority)).await);
        assert!(why.contains(hint), "{why}");
        assert!(sts.requests().is_empty());
    }
}

#[tokio::test]
async fn the_wrong_one_of_http_and_https_is_named() {
    let authority = Authority::new();
    let tls = Stub::tls(&authority.leaf("DNS:localhost"), granted()).await;
    let why = away(call(own(format!("http://localhost:{}", tls.addr.port()))).await);
    assert!(why.contains("does not speak plain HTTP at this port: is it https://?"), "{why}");
    // What Go's servers say themselves, and nginx.
    for body in [
        "Client sent an HTTP request to an HTTPS server.\n",
        "<html><head><title>400 The plain HTTP request was sent to HTTPS port</title></head></html>",
    ] {
        let tls = Stub::plain(answer(400, "", body)).await;
        let why = away(call(own(format!("http://{}", tls.addr))).await);
        assert!(why.contains("is it https://?"), "{why}");
    }
    let plain = Stub::plain(answer(400, "content-type: text/plain\r\n", "what was that?")).await;
    let why = away(call(own(format!("https://{}", plain.addr))).await);
    assert!(why.contains("does not speak TLS at this port: is it http://?"), "{why}");
}

#[tokio::test]
async fn a_redirect_is_not_followed_with_a_token() {
    let other = Stub::plain(granted()).await;
    for status in [301, 302, 307, 308] {
        let headers = format!("location: http://{}/login?state=s3cr3t\r\n", other.addr);
        let sts = Stub::plain(answer(status, &headers, "<html>Moved</html>")).await;
        let why = away(call(own(format!("http://{}", sts.addr))).await);
        assert!(why.contains(&format!("HTTP status {status}, it redirects to {}", other.addr)), "{why}");
        assert!(!why.contains("s3cr3t"), "{why}");
    }
    assert!(other.requests().is_empty());
}

#[tokio::test]
async fn a_web_page_is_not_taken_for_an_answer() {
    for status in [200, 403, 404, 502] {
        let page = "<!DOCTYPE html><html><body>Please log in to the network</body></html>";
        let sts = Stub::plain(answer(status, "content-type: text/html; charset=utf-8\r\n", page)).await;
        let why = away(call(own(format!("http://{}", sts.addr))).await);
        assert!(why.contains(&format!("HTTP status {status}, a web page and not an STS's answer")), "{why}");
    }
}

#[tokio::test]
async fn a_bundle_that_is_renewed_is_believed_at_the_next_call() {
    let (old, new) = (Authority::new(), Authority::new());
    let folder = tempfile::tempdir().unwrap();
    let bundle: PathBuf = folder.path().join("ca.crt");
    put(&old.bundle(), &bundle);
    let settings =
        |url: String| Settings { ca_bundle: Some(CaBundle::read(bundle.clone()).unwrap()), ..own(url) };
    let first = Stub::tls(&old.leaf("DNS:localhost"), granted()).await;
    let port = first.addr.port();
    let client = StsClient::new("eu-west-1", settings(format!("https://localhost:{port}"))).unwrap();
    let plan = plan(ROLE, &[]);
    ask(&client, &plan).await.unwrap();

    first.close().await;
    let second =
        Stub::at(&format!("127.0.0.1:{port}"), Some(&new.leaf("DNS:localhost")), Does::Answer(granted()))
            .await;
    assert!(
        away(ask(&client, &plan).await).contains("--sts-ca-bundle"),
        "the new authority is not there yet"
    );
    put(&new.bundle(), &bundle);
    ask(&client, &plan).await.unwrap();

    // Half a renewal takes nothing away, and neither does a mount that is gone for a moment.
    std::fs::write(&bundle, "").unwrap();
    ask(&client, &plan).await.unwrap();
    std::fs::remove_file(&bundle).unwrap();
    ask(&client, &plan).await.unwrap();
    assert_eq!(second.requests().len(), 3);

    put(&old.bundle(), &bundle);
    assert!(
        away(ask(&client, &plan).await).contains("--sts-ca-bundle"),
        "what was taken out is not believed"
    );
}

#[tokio::test]
async fn a_role_of_another_partition_is_refused_before_sts_is_asked() {
    let client = StsClient::new("eu-west-1", Settings::default()).unwrap();
    for (role, partition) in [
        ("arn:aws-cn:iam::111122223333:role/web", "aws-cn"),
        ("arn:aws-us-gov:iam::111122223333:role/web", "aws-us-gov"),
        ("arn:minio:iam:::role/web-app", "minio"),
    ] {
        let err = ask(&client, &plan(role, &[])).await.unwrap_err();
        assert_eq!(err.code(), "InvalidRole");
        let why = err.to_string();
        assert!(why.contains(role) && why.contains(partition) && why.contains("--region"), "{why}");
    }
}

#[tokio::test]
async fn an_endpoint_that_aws_does_not_have_is_a_start_that_fails() {
    for (region, settings) in [
        ("eu-west-1/", Settings::default()),
        ("eu-west-1", Settings { fips: true, ..own("https://sts.example.com") }),
    ] {
        let why = StsClient::new(region, settings).err().unwrap().to_string();
        assert!(why.contains(region) && why.contains("--sts-endpoint-url"), "{why}");
    }
}
