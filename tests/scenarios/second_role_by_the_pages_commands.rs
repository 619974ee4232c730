//! docs/assume-role.md as it stands, copied line by line: the two roles by the AWS CLI, the annotations by kubectl, and the pod that shows
//! whose keys it got.

use serde_json::{Value, json};

use crate::agent::SOON;
use crate::moto::ACCOUNT;
use crate::page::{Reader, commands, section};
use crate::scenario::{VARIABLES, scenario};
use crate::sdk::tool;

const PAGE: &str = include_str!("../../docs/assume-role.md");

#[test]
fn second_role_by_the_pages_commands() {
    scenario("second_role_by_the_pages_commands", async |it| {
        let secret = it.aws.secret("shop/database", "hunter2");
        // What the page takes to be there.
        let operator = it.namespace("external-secrets", json!({})).await;
        operator.account_with("external-secrets", json!({})).await;

        let mut blocks = commands(section(PAGE, "## Two hops"));
        let see = blocks.pop().expect("the page has commands");
        assert_eq!(blocks.len(), 3, "a role, a role, the ServiceAccount: {blocks:?}");
        blocks.extend(commands(section(PAGE, "## What the second hop may show")));
        assert_eq!(blocks.len(), 4, "and the tags");
        // Here is one account. moto's Secrets Manager looks at no resource, and takes `*` alone.
        let here = |script: &str| {
            let resource = "\"arn:aws:secretsmanager:eu-central-1:444455556666:secret:shop/*\"";
            script
                .replace(resource, "\"*\"")
                .replace("111122223333", ACCOUNT)
                .replace("444455556666", ACCOUNT)
        };
        let reader = Reader::new(it.server, Some(&it.aws.moto.endpoint()));
        let play = |script: &str| reader.play_by(it.node.command("bash"), &here(script));
        blocks.iter().for_each(|block| drop(play(block)));
        it.aws.adopt("external-secrets");
        let team = it.aws.adopt("shop-secrets");
        let (_, sts) = it.aws.open();
        let _agent = it.agent(&["--sts-endpoint-url", &sts]).await;

        // There is no kubelet: what kubectl would create is run as the scenarios run pods, with the variables that the label brings.
        let instead = see.replacen(" -i --rm ", " --dry-run=client -o json ", 1);
        let mut object: Value = serde_json::from_str(&play(&instead)).unwrap();
        assert_eq!(object["metadata"]["labels"]["rolecall.dev/inject"], "true");
        object["spec"]["nodeName"] = it.name.clone().into();
        object["spec"]["containers"][0]["env"] =
            VARIABLES.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        let pod = it.start(&operator, &object).await;
        pod.has_role(&team).await;
        let words = object["spec"]["containers"][0]["args"].as_array().unwrap().iter();
        let mut aws = pod.container(&tool("python", "aws"));
        aws.args(words.map(|word| word.as_str().unwrap())).env("AWS_ENDPOINT_URL_STS", &sts);
        let said = String::from_utf8(aws.output().unwrap().stdout).unwrap();
        assert!(said.contains(":assumed-role/shop-secrets/external-secrets.external-secrets\""), "{said}");
        let read = pod.must("secretsmanager", "get_secret_value", &json!({"SecretId": secret}));
        assert_eq!(read["SecretString"], "hunter2");
        pod.is_denied_by("secretsmanager", "list_secrets", &json!({}));

        // What the team's role asks for is asked for: the external id, and the tag of the namespace.
        let to = "169.254.170.23:9902".parse().unwrap();
        for (name, wrong, right) in [
            ("rolecall.dev/external-id", json!("shop-43"), json!("shop-42")),
            ("rolecall.dev/session-tags", Value::Null, json!("kubernetes-namespace,kubernetes-pod-name")),
        ] {
            operator.annotate("external-secrets", json!({name: wrong})).await;
            pod.until(to, SOON, |answer| answer.status == 403 && answer.code() == "StsDenied").await;
            operator.annotate("external-secrets", json!({name: right})).await;
            pod.until(to, SOON, |answer| answer.status == 200).await;
        }
    });
}
