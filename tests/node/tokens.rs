//! Tokens in Authorization, by the shipped agent: for pods on the node's own network, and in place of tokens that it mints.

use std::net::SocketAddr;

use crate::agent::{SOON, until};
use crate::http::{self, Answer};
use crate::netns::NODE_IP;
use crate::tenant::{RunningPod, Shape};
use crate::world::{V4, arn, on_the_node};

/// What an SDK sends that has found a token file.
fn with(to: SocketAddr, token: &str) -> String {
    http::request(to).replace("Accept:", &format!("Authorization: {token}\r\nAccept:"))
}

/// Asks from the host as SDKs do, again after a 503.
async fn from_the_host(from: &str, to: SocketAddr, token: &str) -> Answer {
    let ask = async || {
        let answer = http::get(from, to, &with(to, token)).await;
        (answer.status != 503).then_some(answer)
    };
    until(SOON, || format!("503 for {from}"), ask).await
}

/// Likewise from a pod.
async fn from_pod(pod: &RunningPod, to: SocketAddr, token: &str) -> Answer {
    let ask = async || {
        let answer = http::ask(&mut pod.connect(to), &with(to, token)).await?;
        (answer.status != 503).then_some(answer)
    };
    until(SOON, || format!("503 for {}", pod.name), ask).await
}

/// The same token with another signature.
fn forged(token: &str) -> String {
    let (claims, signature) = token.rsplit_once('.').unwrap();
    format!("{claims}.{}", signature.chars().rev().collect::<String>())
}

#[test]
fn a_pod_on_the_host_network_gets_its_role_for_its_token() {
    on_the_node("host-token", async |case| {
        case.account("web").await;
        case.account("api").await;
        let host = case.host_pod("web").await;
        let token = case.token("web", "host", &host, "rolecall").await;
        let to = V4.parse().unwrap();
        for from in ["169.254.170.23", NODE_IP] {
            for token in [token.clone(), format!("Bearer {token}")] {
                let answer = from_the_host(from, to, &token).await;
                assert_eq!(answer.status, 200, "{from}: {answer:?}");
                assert_eq!(answer.json()["RoleArn"], arn("host-token", "web"));
            }
            let answer = from_the_host(from, to, &forged(&token)).await;
            assert_eq!((answer.status, &*answer.code()), (401, "AuthorizationInvalid"));
            let answer = from_the_host(from, to, "rolecall").await;
            assert_eq!((answer.status, &*answer.code()), (403, "CallerNotIdentified"));
        }
        // A thief of the token, in a pod of his own.
        let thief = case.pod("api").await;
        let answer = from_pod(&thief, to, &token).await;
        assert_eq!((answer.status, &*answer.code()), (403, "SourceMismatch"), "{answer:?}");
    });
}

#[test]
fn sts_judges_the_tokens_of_an_agent_that_mints_none() {
    on_the_node("own-token", async |case| {
        case.account("web").await;
        case.account("api").await;
        let args = ["--sts-endpoint-url", &case.world.sts, "--token-source", "caller"];
        let (agent, to) = case.agent("own-token", &case.kubeconfig("own-token"), &args).await;
        agent.until_ready().await;
        let web = case.pod_on("own-token", "web", Shape::Routed).await;
        let api = case.pod_on("own-token", "api", Shape::Routed).await;
        let tokens = [
            case.token("web", &web.name, &web.uid, "sts.amazonaws.com").await,
            case.token("api", &api.name, &api.uid, "sts.amazonaws.com").await,
        ];
        let answer = from_pod(&web, to, "rolecall").await;
        assert_eq!((answer.status, &*answer.code()), (401, "AuthorizationRequired"), "{answer:?}");
        let answer = from_pod(&web, to, &tokens[1]).await;
        assert_eq!((answer.status, &*answer.code()), (401, "AuthorizationInvalid"), "{answer:?}");
        let answer = from_pod(&web, to, &tokens[0]).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json()["RoleArn"], arn("own-token", "web"));
        let answer = from_pod(&api, to, &forged(&tokens[1])).await;
        assert_eq!((answer.status, &*answer.code()), (403, "StsDenied"), "{answer:?}");
        agent.has_told_no_secret();
    });
}
