//! China: a partition of its own, under a domain of its own. The pod reads from S3, by one role and by a second hop. The old annotation for
//! the global endpoint changes nothing, since China has none.

use serde_json::json;

use crate::aws::allow;
use crate::scenario::scenario_in;
use crate::tunnel::Tunnel;

const STS: &str = "sts.cn-north-1.amazonaws.com.cn";

#[test]
fn china_by_its_own_domain() {
    scenario_in("china_by_its_own_domain", ("aws-cn", "cn-north-1"), async |it| {
        it.aws.bucket("shop", "prices", "42");
        it.aws.bucket("staff", "salaries", "secret");
        let trusted = it.aws.trusts(it, "web", "sts.amazonaws.com");
        let may = json!([allow("s3:GetObject", "arn:aws-cn:s3:::shop/*"), allow("sts:AssumeRole", "*"),]);
        let web = it.aws.role("web", &trusted, &may);
        let by_web = json!({"Effect": "Allow", "Principal": {"AWS": web}, "Action": "sts:AssumeRole"});
        let staff = it.aws.role("staff", &by_web, &allow("s3:GetObject", "arn:aws-cn:s3:::staff/*"));
        let (commercial, commercial_staff) = (it.aws.twin_in_aws(&web), it.aws.twin_in_aws(&staff));
        let tunnel = Tunnel::open(it, &[STS]);
        let _agent = it.agent_by(tunnel.agent(it, ""), &[]).await;

        let annotations =
            json!({"rolecall.dev/role-arn": web, "eks.amazonaws.com/sts-regional-endpoints": "false"});
        it.account_with("web", annotations).await;
        let pod = it.pod("web").await;
        pod.has_role(&web).await;
        let (shop, salaries) =
            (json!({"Bucket": "shop", "Key": "prices"}), json!({"Bucket": "staff", "Key": "salaries"}));
        assert_eq!(pod.must("s3", "get_object", &shop)["Body"], "42");
        pod.is_denied_by("s3", "get_object", &salaries);

        // STS refuses whom the role does not trust.
        it.account_with("api", json!({"rolecall.dev/role-arn": web})).await;
        it.pod("api").await.is_refused_with("StsDenied").await;

        // By a second hop, which is signed for China's region.
        it.annotate("web", json!({"rolecall.dev/assume-role-arn": staff})).await;
        let second = it.pod("web").await;
        second.has_role(&staff).await;
        assert_eq!(second.must("s3", "get_object", &salaries)["Body"], "secret");
        second.is_denied_by("s3", "get_object", &shop);

        // This STS would give the roles of `aws`; China's has none of them, and is not asked.
        let asked = || ["AssumeRoleWithWebIdentity", "AssumeRole"].map(|action| tunnel.sts.received(action));
        let before = asked();
        for (role, annotations) in [
            (&commercial_staff, json!({"rolecall.dev/assume-role-arn": commercial_staff})),
            (&commercial, json!({"rolecall.dev/role-arn": commercial, "rolecall.dev/assume-role-arn": null})),
        ] {
            it.annotate("web", annotations).await;
            let why = format!("{role} is in the partition aws, and this agent asks the STS of aws-cn");
            second.comes_to_be_refused_saying("InvalidRole", &why).await;
        }
        assert_eq!(asked(), before);
        assert!(tunnel.asked().iter().all(|request| request.line() == format!("CONNECT {STS}:443 HTTP/1.1")));
    });
}
