//! Defaults, variables, and every mistake at once.

use super::*;

pub(super) fn args() -> Args {
    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }
    <Cli as clap::Parser>::try_parse_from(["rolecall", "--node-name", "n"]).unwrap().args
}

#[test]
fn the_node_name_is_all_that_is_required() {
    let config = Config::from_args(args(), |_| None).unwrap();
    assert_eq!(config.listen.len(), 3);
    assert!(!config.impersonate_node, "it takes rights that a Kubernetes before 1.36 cannot give");
    assert_eq!(config.listen[0].port(), PORT);
    assert_eq!(config.plan, Defaults::of_node("n"), "`rolecall dev` plans as the agent does");
}

#[test]
fn the_kernel_proves_callers_unless_less_is_asked_for() {
    assert_eq!(Config::from_args(args(), |_| None).unwrap().identity, Identity::Kernel);
    let args = Args { identity: "ip".into(), ..args() };
    assert_eq!(Config::from_args(args, |_| None).unwrap().identity, Identity::Ip);
}

#[test]
fn a_token_for_the_agent_is_asked_of_nobody_unless_it_is_required() {
    let config = Config::from_args(args(), |_| None).unwrap();
    assert!(matches!(config.authorization.required, Required::Off));
    assert_eq!(config.authorization.audiences, ["rolecall"]);
    let args = Args { require_authorization: "token".into(), ..args() };
    assert!(matches!(Config::from_args(args, |_| None).unwrap().authorization.required, Required::Token));
}

#[test]
fn a_token_that_is_required_of_callers_is_the_one_for_sts() {
    let both = |audiences: &[&str]| {
        let audiences = audiences.iter().map(|&audience| audience.to_owned()).collect();
        let args = Args {
            require_authorization: "token".into(),
            token_source: "caller".into(),
            authorization_audience: audiences,
            ..args()
        };
        Config::from_args(args, |_| None)
    };
    let Mistakes(mistakes) = both(&["rolecall"]).unwrap_err();
    assert!(mistakes.len() == 1 && mistakes[0].starts_with("--authorization-audience:"), "{mistakes:?}");
    assert!(mistakes[0].contains(AUDIENCE), "{mistakes:?}");
    assert_eq!(both(&["rolecall", AUDIENCE]).unwrap().authorization.tokens, TokenSource::Caller);
}

#[test]
fn metrics_are_served_at_the_address_of_the_downward_api() {
    for (text, address) in [
        ("10.0.0.1", "10.0.0.1:9903"),
        ("fd00::1", "[fd00::1]:9903"),
        ("10.0.0.1:9100", "10.0.0.1:9100"),
        ("[fd00::1]:9100", "[fd00::1]:9100"),
    ] {
        let args = Args { metrics_listen: text.into(), ..args() };
        let config = Config::from_args(args, |_| None).unwrap();
        assert_eq!(config.metrics_listen, address.parse().unwrap(), "{text}");
    }
}

#[test]
fn every_mistake_is_reported_at_once() {
    let args = Args {
        node_name: None,
        listen: vec!["0.0.0.0:9902".into(), "nonsense".into()],
        metrics_listen: "9903".into(),
        identity: "guess".into(),
        require_authorization: "yes".into(),
        authorization_audience: vec!["rolecall".into(), String::new()],
        token_source: "vault".into(),
        session_duration: "3600".into(),
        session_name: "{who}".into(),
        sts_endpoint_url: Some("sts".into()),
        region: Some("eu-west-1/".into()),
        sts_ca_bundle: Some("/nonexistent/ca.pem".into()),
        allow_role: vec!["team-a".into()],
        allow_audience: vec!["other".into()],
        ..args()
    };
    let Mistakes(mistakes) = Config::from_args(args, |_| None).unwrap_err();
    for flag in [
        "node-name",
        "listen",
        "metrics-listen",
        "identity",
        "require-authorization",
        "authorization-audience",
        "token-source",
        "session-duration",
        "session-name",
        "sts-endpoint-url",
        "region",
        "sts-ca-bundle",
        "allow-role",
        "allow-audience",
    ] {
        assert!(
            mistakes.iter().any(|mistake| mistake.starts_with(&format!("--{flag}:"))),
            "{flag}: {mistakes:?}"
        );
    }
    assert_eq!(mistakes.len(), 15, "two listeners are wrong");
}

#[test]
fn the_logged_configuration_leaves_a_bundles_bytes_and_a_proxys_password_out() {
    let bundle = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/emulator/ca.pem");
    let proxy = |name: &str| (name == "HTTPS_PROXY").then(|| "http://me:s3cr3t@proxy:3128".to_owned());
    let config = Config::from_args(Args { sts_ca_bundle: Some(bundle.into()), ..args() }, proxy).unwrap();
    for logged in [config.to_string(), format!("{config:?}")] {
        assert!(logged.contains(&format!("{bundle} (")) && logged.contains("http://proxy:3128"), "{logged}");
        assert!(!logged.contains("BEGIN") && !logged.contains("s3cr3t"), "{logged}");
    }
}

#[test]
fn awss_own_variables_stand_in_for_flags() {
    let variable = |name: &str| match name {
        "AWS_REGION" => Some("eu-west-1".to_owned()),
        "AWS_ENDPOINT_URL_STS" => Some("http://127.0.0.1:4566".to_owned()),
        _ => None,
    };
    let config = Config::from_args(args(), variable).unwrap();
    assert_eq!(config.region.as_deref(), Some("eu-west-1"));
    assert_eq!(config.sts.url.as_deref(), Some("http://127.0.0.1:4566"));
    let empty = Args { region: Some(String::new()), ..args() };
    assert_eq!(Config::from_args(empty, variable).unwrap().region.as_deref(), Some("eu-west-1"));
    let flags = Args { region: Some("us-east-1".into()), ..args() };
    assert_eq!(Config::from_args(flags, variable).unwrap().region.as_deref(), Some("us-east-1"));
}

#[test]
fn a_region_of_aws_is_in_lower_case_and_one_of_another_sts_as_that_has_it() {
    let of = |region: &str, url: Option<&str>| {
        let args = Args { region: Some(region.into()), sts_endpoint_url: url.map(str::to_owned), ..args() };
        Config::from_args(args, |_| None).map(|config| config.region)
    };
    let Mistakes(mistakes) = of("EU-WEST-1", None).unwrap_err();
    assert!(mistakes.len() == 1 && mistakes[0].starts_with("--region: "), "{mistakes:?}");
    assert_eq!(of("RegionOne", Some("https://ceph.example")).unwrap().as_deref(), Some("RegionOne"));
}

#[test]
fn a_password_in_the_endpoint_is_refused_and_not_repeated() {
    for rest in ["", ":99999", "#sts", "?key"] {
        let url = Some(format!("https://user:the-password@sts.example.com{rest}"));
        let err = Config::from_args(Args { sts_endpoint_url: url, ..args() }, |_| None).unwrap_err();
        assert!(err.0[0].starts_with("--sts-endpoint-url:") && !err.0[0].contains("the-password"), "{err}");
    }
}
