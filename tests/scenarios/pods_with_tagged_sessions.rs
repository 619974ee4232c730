//! A role that lets a pod in by its session's tags and source identity, as an auditor wants it: each pod has a session of its own, on one
//! first hop. What STS says of the tags' packed size stands in the log and in the metrics.

use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use crate::agent::SOON;
use crate::aws::allow;
use crate::http;
use crate::scenario::scenario;

/// Where the agent is scraped.
const METRICS: &str = "127.0.0.1:9903";

#[test]
fn pods_with_tagged_sessions() {
    scenario("pods_with_tagged_sessions", async |it| {
        it.aws.bucket("shop", "prices", "42");
        let first = "arn:aws:iam::123456789012:role/web";
        let identity = format!("{}.web", it.namespace);
        let audited = it.aws.role(
            "audited",
            &json!({
                "Effect": "Allow",
                "Principal": {"AWS": first},
                "Action": ["sts:AssumeRole", "sts:TagSession", "sts:SetSourceIdentity"],
                "Condition": {
                    "StringEquals": {
                        "aws:RequestTag/eks-cluster-name": "here",
                        "aws:RequestTag/kubernetes-namespace": &it.namespace,
                        "aws:RequestTag/kubernetes-service-account": "web",
                        "aws:RequestTag/kubernetes-node": &it.name,
                        "sts:SourceIdentity": identity,
                    },
                    "StringLike": {
                        "aws:RequestTag/kubernetes-pod-name": "web-*",
                        "aws:RequestTag/kubernetes-pod-uid": "????????-????-????-????-????????????",
                    },
                },
            }),
            &allow("s3:GetObject", "arn:aws:s3:::shop/*"),
        );
        let trusted = it.aws.trusts(it, "web", "sts.amazonaws.com");
        assert_eq!(it.aws.role("web", &trusted, &allow("sts:AssumeRole", &audited)), first);
        let (emulator, sts) = it.aws.open();
        let agent = it.agent(&["--sts-endpoint-url", &sts, "--cluster-name", "here"]).await;

        let tags = "eks-cluster-name,kubernetes-namespace,kubernetes-service-account,kubernetes-pod-name:transitive,\
                    kubernetes-pod-uid,kubernetes-node";
        let annotations = json!({
            "rolecall.dev/role-arn": first,
            "rolecall.dev/assume-role-arn": audited,
            "rolecall.dev/session-tags": tags,
            "rolecall.dev/source-identity": "{namespace}.{service-account}",
            "rolecall.dev/policy-arns": "arn:aws:iam::aws:policy/AmazonS3ReadOnlyAccess",
            // More than a chain's sessions may have.
            "rolecall.dev/session-duration": "12h",
        });
        it.account_with("web", annotations.clone()).await;
        let (pod, to) = (it.pod("web").await, "169.254.170.23:9902".parse().unwrap());
        assert_eq!(pod.must("s3", "get_object", &json!({"Bucket": "shop", "Key": "prices"}))["Body"], "42");
        pod.is_denied_by("s3", "put_object", &json!({"Bucket": "shop", "Key": "prices", "Body": "1"}));
        let keys = pod.credentials(to).await;
        let ends: Timestamp = keys["Expiration"].as_str().unwrap().parse().unwrap();
        assert!(ends.duration_since(Timestamp::now()) <= SignedDuration::from_hours(1), "{ends}");
        agent.until_it_says("\"packed_policy_percent\":").await;
        let request = format!("GET /metrics HTTP/1.1\r\nHost: {METRICS}\r\n\r\n");
        let metrics = http::get("127.0.0.1", METRICS.parse().unwrap(), &request).await;
        let percent =
            |line: &str| line.strip_prefix("rolecall_sts_packed_policy_percent ")?.parse::<u32>().ok();
        assert!(metrics.body.lines().find_map(percent).unwrap() > 0);

        // The session is the pod's own, for its name is in the tags; what it stands on is the ServiceAccount's.
        let second = it.pod("web").await;
        assert_ne!(second.credentials(to).await["AccessKeyId"], keys["AccessKeyId"]);
        let calls = |role: &str| {
            let calls = emulator.calls().into_iter().filter(|calls| calls.role == role);
            calls.map(|calls| calls.received).sum::<u64>()
        };
        assert_eq!((calls(first), calls(&audited)), (1, 2));

        // Each of them counts: without one, or with another identity, the role does not let the pod in.
        for (name, value) in [
            ("rolecall.dev/session-tags", tags.replace(",kubernetes-node", "")),
            ("rolecall.dev/session-tags", tags.replace("eks-cluster-name,", "")),
            ("rolecall.dev/source-identity", "{namespace}.{service-account}@{pod}".to_owned()),
        ] {
            let mut wrong = annotations.clone();
            wrong[name] = value.into();
            it.annotate("web", wrong).await;
            pod.until(to, SOON, |answer| answer.status == 403 && answer.code() == "StsDenied").await;
            it.annotate("web", annotations.clone()).await;
            pod.until(to, SOON, |answer| answer.status == 200).await;
        }
    });
}
