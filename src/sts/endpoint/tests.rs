//! The names of STS in every partition, as calls will use them; nothing is dialled.

use super::*;

fn settings(fips: bool, dual_stack: bool) -> Settings {
    Settings { fips, dual_stack, ..Settings::default() }
}

fn url(region: &str, fips: bool, dual_stack: bool) -> String {
    Endpoint::resolve(region, &settings(fips, dual_stack)).map_or_else(|why| why, |endpoint| endpoint.url)
}

#[test]
fn every_partition_has_its_own_names() {
    for (region, plain, fips, dual_stack) in [
        (
            "eu-central-1",
            "https://sts.eu-central-1.amazonaws.com",
            "https://sts-fips.eu-central-1.amazonaws.com",
            "https://sts.eu-central-1.api.aws",
        ),
        (
            "us-gov-west-1",
            "https://sts.us-gov-west-1.amazonaws.com",
            // AWS runs no other there: the plain endpoint is validated.
            "https://sts.us-gov-west-1.amazonaws.com",
            "https://sts.us-gov-west-1.api.aws",
        ),
        (
            "cn-north-1",
            "https://sts.cn-north-1.amazonaws.com.cn",
            "https://sts-fips.cn-north-1.amazonaws.com.cn",
            "https://sts.cn-north-1.api.amazonwebservices.com.cn",
        ),
        (
            "us-iso-east-1",
            "https://sts.us-iso-east-1.c2s.ic.gov",
            "https://sts-fips.us-iso-east-1.c2s.ic.gov",
            "https://sts.us-iso-east-1.api.aws.ic.gov",
        ),
        (
            "us-isob-east-1",
            "https://sts.us-isob-east-1.sc2s.sgov.gov",
            "https://sts-fips.us-isob-east-1.sc2s.sgov.gov",
            "https://sts.us-isob-east-1.api.aws.scloud",
        ),
        (
            "eu-isoe-west-1",
            "https://sts.eu-isoe-west-1.cloud.adc-e.uk",
            "https://sts-fips.eu-isoe-west-1.cloud.adc-e.uk",
            "https://sts.eu-isoe-west-1.api.cloud-aws.adc-e.uk",
        ),
        (
            "us-isof-south-1",
            "https://sts.us-isof-south-1.csp.hci.ic.gov",
            "https://sts-fips.us-isof-south-1.csp.hci.ic.gov",
            "https://sts.us-isof-south-1.api.aws.hci.ic.gov",
        ),
        (
            "eusc-de-east-1",
            "https://sts.eusc-de-east-1.amazonaws.eu",
            "https://sts-fips.eusc-de-east-1.amazonaws.eu",
            "https://sts.eusc-de-east-1.api.amazonwebservices.eu",
        ),
    ] {
        assert_eq!(url(region, false, false), plain);
        assert_eq!(url(region, true, false), fips);
        assert_eq!(url(region, false, true), dual_stack);
    }
    assert_eq!(url("us-east-2", true, true), "https://sts-fips.us-east-2.api.aws");
}

#[test]
fn the_global_endpoint_is_asked_only_where_an_aws_sdk_would() {
    let global = |region: &str, fips, dual_stack| {
        Endpoint::resolve(region, &settings(fips, dual_stack)).unwrap().global
    };
    assert_eq!(global("eu-west-1", false, false).as_deref(), Some("https://sts.amazonaws.com"));
    for (region, fips, dual_stack) in [
        ("eu-west-1", true, false),
        ("eu-west-1", false, true),
        // A region that must be enabled does not take the global endpoint's sessions.
        ("ap-east-1", false, false),
        ("cn-north-1", false, false),
        ("us-gov-east-1", false, false),
        ("us-iso-east-1", false, false),
        ("us-isob-east-1", false, false),
        ("eusc-de-east-1", false, false),
    ] {
        assert_eq!(global(region, fips, dual_stack), None, "{region} fips={fips} dual-stack={dual_stack}");
    }
    let own = Settings { url: Some("https://sts.example.com".into()), ..Settings::default() };
    assert_eq!(Endpoint::resolve("eu-west-1", &own).unwrap().global, None, "its owner chose where calls go");
}

#[test]
fn an_url_of_ones_own_has_no_fips_or_dual_stack_name() {
    for (fips, dual_stack) in [(true, false), (false, true)] {
        let own = Settings { url: Some("https://sts.example.com".into()), ..settings(fips, dual_stack) };
        assert!(Endpoint::resolve("eu-west-1", &own).is_err());
    }
}

#[test]
fn a_role_of_another_partition_is_foreign_except_to_an_sts_of_ones_own() {
    let role =
        |partition: &str| RoleArn::parse(&format!("arn:{partition}:iam::111122223333:role/web")).unwrap();
    let regions = [
        ("eu-central-1", "aws"),
        ("cn-northwest-1", "aws-cn"),
        ("us-gov-west-1", "aws-us-gov"),
        ("us-iso-west-1", "aws-iso"),
        ("us-isob-east-1", "aws-iso-b"),
        ("eu-isoe-west-1", "aws-iso-e"),
        ("us-isof-east-1", "aws-iso-f"),
        ("eusc-de-east-1", "aws-eusc"),
    ];
    for (region, ours) in regions {
        let endpoint = Endpoint::resolve(region, &Settings::default()).unwrap();
        assert_eq!(endpoint.foreign(&role(ours)), None, "{region}");
        for (_, theirs) in regions.into_iter().filter(|(_, theirs)| *theirs != ours) {
            assert_eq!(endpoint.foreign(&role(theirs)), Some((theirs, ours)), "{region}");
        }
    }
    let own = Settings { url: Some("http://localhost:4566".into()), ..Settings::default() };
    let own = Endpoint::resolve("cn-north-1", &own).unwrap();
    assert_eq!(own.foreign(&role("aws")), None, "LocalStack has what it is told");
    assert_eq!(own.foreign(&RoleArn::parse("arn:minio:iam:::role/idmp-app").unwrap()), None);
}

#[test]
fn a_vpc_endpoint_says_its_region() {
    for (url, region) in [
        ("https://vpce-0a1b2c3d-4e5f.sts.us-gov-west-1.vpce.amazonaws.com", "us-gov-west-1"),
        ("https://sts.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("https://sts-fips.us-east-2.amazonaws.com", "us-east-2"),
        ("https://sts.amazonaws.com", "us-east-1"),
        ("https://sts.example.com/path", "us-east-1"),
        ("http://[::1]:4566", "us-east-1"),
    ] {
        assert_eq!(region_of(url), region, "{url}");
    }
}
