//! The paths of instance metadata that pods are answered, and the harmless facts behind some of them. All others are 404.
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-categories.html>

use percent_encoding::percent_decode_str;

use crate::cluster::node::Facts;
use crate::role::RoleArn;

/// What a path asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Path {
    /// `/latest/api/token`
    Token,
    /// `…/iam/security-credentials`, with or without a slash at its end: the role's name. The C++ SDK asks without.
    Roles,
    /// `…/iam/security-credentials/NAME`: the credential document.
    Role(String),
    /// A fact of the node.
    Fact(Fact),
    /// `/latest/dynamic/instance-identity/document`: from it Go and Java read the region. What AWS signs beside it (`pkcs7`,
    /// `signature`, `rsa2048`) is not here, so nobody can take this for a proof.
    IdentityDocument,
    /// What stands below a path.
    Listing(Listing),
}

/// A fact that gives away no right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    /// `instance-id`
    InstanceId,
    /// `instance-type`
    InstanceType,
    /// `placement/availability-zone`
    Zone,
    /// `placement/availability-zone-id`
    ZoneId,
    /// `placement/region`
    Region,
}

/// The directories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing {
    /// `/latest/`
    Version,
    /// `/latest/meta-data/`
    MetaData,
    /// `/latest/meta-data/iam/`
    Iam,
    /// `/latest/meta-data/placement/`
    Placement,
    /// `/latest/dynamic/`
    Dynamic,
    /// `/latest/dynamic/instance-identity/`
    InstanceIdentity,
}

const FACTS: [(&str, Fact); 5] = [
    ("instance-id", Fact::InstanceId),
    ("instance-type", Fact::InstanceType),
    ("placement/availability-zone", Fact::Zone),
    ("placement/availability-zone-id", Fact::ZoneId),
    ("placement/region", Fact::Region),
];

impl Path {
    /// The meaning of a request's path, or none. Compared as it is written, but for a role's name: no two spellings of a path are
    /// one here, so there is nothing to go around.
    pub fn read(path: &str) -> Option<Self> {
        let (version, rest) = path.strip_prefix('/')?.split_once('/')?;
        if version != "latest" && !is_date(version) {
            return None;
        }
        // The real service takes one slash more or less at the end, and SDKs rely on either.
        let whole = rest.strip_suffix('/').filter(|whole| !whole.is_empty()).unwrap_or(rest);
        let listing = |listing| Some(Self::Listing(listing));
        match whole {
            "" => listing(Listing::Version),
            "api/token" => Some(Self::Token),
            "dynamic" => listing(Listing::Dynamic),
            "dynamic/instance-identity" => listing(Listing::InstanceIdentity),
            "dynamic/instance-identity/document" => Some(Self::IdentityDocument),
            "meta-data" => listing(Listing::MetaData),
            "meta-data/iam" => listing(Listing::Iam),
            "meta-data/iam/security-credentials" => Some(Self::Roles),
            "meta-data/placement" => listing(Listing::Placement),
            _ => {
                let below = whole.strip_prefix("meta-data/")?;
                if let Some(name) = below.strip_prefix("iam/security-credentials/") {
                    // Compared with the one name that there is, so that what it decodes to opens nothing.
                    let name = percent_decode_str(name).decode_utf8().ok()?;
                    return Some(Self::Role(name.into_owned()));
                }
                FACTS.iter().find(|(path, _)| *path == below).map(|(_, fact)| Self::Fact(*fact))
            }
        }
    }
}

/// The other names of a version: `2021-07-15`. Which one makes no difference to what is served here.
fn is_date(version: &str) -> bool {
    version.len() == 10
        && version
            .bytes()
            .enumerate()
            .all(|(at, byte)| if at == 4 || at == 7 { byte == b'-' } else { byte.is_ascii_digit() })
}

/// The value of a fact; none where the node's object does not tell.
pub fn fact(fact: Fact, facts: &Facts) -> Option<&str> {
    match fact {
        Fact::InstanceId => facts.instance_id.as_deref(),
        Fact::InstanceType => facts.instance_type.as_deref(),
        Fact::Zone => facts.zone.as_deref(),
        Fact::ZoneId => facts.zone_id.as_deref(),
        Fact::Region => facts.region.as_deref(),
    }
}

/// The lines of a directory, as the real service prints them: what has more below it ends in a slash.
pub fn list(listing: Listing, facts: &Facts) -> String {
    let known = |below: &str| {
        FACTS
            .iter()
            .filter(|(_, each)| fact(*each, facts).is_some())
            .filter_map(|(path, _)| path.strip_prefix(below))
            .filter(|name| !name.contains('/'))
            .collect::<Vec<_>>()
    };
    let lines = match listing {
        Listing::Version => vec!["dynamic", "meta-data"],
        Listing::MetaData => {
            let own = known("");
            [vec!["iam/"], own, vec!["placement/"]].concat()
        }
        Listing::Iam => vec!["security-credentials/"],
        Listing::Placement => known("placement/"),
        Listing::Dynamic => vec!["instance-identity/"],
        Listing::InstanceIdentity => vec!["document"],
    };
    lines.join("\n")
}

/// The identity document, of what is known; none without a region, which is what it is asked for.
pub fn identity_document(facts: &Facts) -> Option<String> {
    let mut document = serde_json::Map::new();
    document.insert("region".into(), facts.region.as_deref()?.into());
    for (name, value) in [
        ("availabilityZone", &facts.zone),
        ("instanceId", &facts.instance_id),
        ("instanceType", &facts.instance_type),
    ] {
        if let Some(value) = value {
            document.insert(name.into(), value.as_ref().into());
        }
    }
    Some(serde_json::Value::Object(document).to_string())
}

/// The name under which a role is listed: the last part of its ARN, as kube2iam and kiam have it.
pub fn role_name(arn: &RoleArn) -> &str {
    arn.as_str().rsplit('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts { region: Some("eu-central-1".into()), zone: Some("eu-central-1a".into()), ..Facts::default() }
    }

    #[test]
    fn paths_are_read_with_and_without_the_slash_and_by_any_version() {
        for path in [
            "/latest/meta-data/iam/security-credentials",
            "/latest/meta-data/iam/security-credentials/",
            "/2021-07-15/meta-data/iam/security-credentials/",
        ] {
            assert_eq!(Path::read(path), Some(Path::Roles), "{path}");
        }
        let zone = Some(Path::Fact(Fact::Zone));
        assert_eq!(Path::read("/latest/meta-data/placement/availability-zone"), zone);
        assert_eq!(Path::read("/latest/meta-data/placement/availability-zone/"), zone, "botocore");
        assert_eq!(Path::read("/latest/api/token"), Some(Path::Token));
    }

    #[test]
    fn a_roles_name_may_be_escaped() {
        let role = |name: &str| Path::read(&format!("/latest/meta-data/iam/security-credentials/{name}"));
        assert_eq!(role("a+b=c,d.e@f"), Some(Path::Role("a+b=c,d.e@f".into())));
        assert_eq!(role("a%2Bb%3dc"), Some(Path::Role("a+b=c".into())));
        assert_eq!(role("%ff"), None);
    }

    #[test]
    fn everything_else_is_not_there() {
        for path in [
            "",
            "/",
            "/latest",
            "latest/meta-data",
            "/latest//",
            "/latest//meta-data",
            "/latest/meta-data//",
            "/latest/meta-data/iam/info",
            "/latest/meta-data/../user-data",
            "/latest/meta-data/iam/%73ecurity-credentials",
            "/latest/meta-data/placement%2Fregion",
            "/latest/user-data",
            "/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance",
            "/latest/dynamic/instance-identity/signature",
            "/latest/dynamic/instance-identity/pkcs7",
            "/1.0/meta-data/instance-id",
            "/2021-07-1x/meta-data",
        ] {
            assert_eq!(Path::read(path), None, "{path}");
        }
    }

    /// The one way to write what a path means; of a role, with nothing of its name escaped.
    fn written(path: &Path) -> Vec<String> {
        let below = match path {
            Path::Token => "api/token".to_owned(),
            Path::Roles => "meta-data/iam/security-credentials".to_owned(),
            Path::Role(name) => format!("meta-data/iam/security-credentials/{name}"),
            Path::Fact(fact) => {
                let named = FACTS.iter().find(|(_, each)| each == fact).expect("every fact has its path");
                format!("meta-data/{}", named.0)
            }
            Path::IdentityDocument => "dynamic/instance-identity/document".to_owned(),
            Path::Listing(Listing::Version) => return vec![String::new()],
            Path::Listing(Listing::MetaData) => "meta-data".to_owned(),
            Path::Listing(Listing::Iam) => "meta-data/iam".to_owned(),
            Path::Listing(Listing::Placement) => "meta-data/placement".to_owned(),
            Path::Listing(Listing::Dynamic) => "dynamic".to_owned(),
            Path::Listing(Listing::InstanceIdentity) => "dynamic/instance-identity".to_owned(),
        };
        vec![format!("{below}/"), below]
    }

    #[test]
    fn whatever_is_asked_only_what_is_written_so_is_answered() {
        let corpus = [
            "/latest/api/token",
            "/latest/meta-data/iam/security-credentials/",
            "/latest/meta-data/iam/security-credentials/web%2Bapi",
            "/2021-07-15/meta-data/placement/availability-zone-id",
            "/latest/dynamic/instance-identity/document",
        ];
        let words =
            ["..", "//", "%2e%2e", "%2f", ";", "?", "#", "user-data", "latest", "meta-data", "iam/info"];
        crate::fuzz::fuzz(20_000, &corpus, &words, |input| {
            let Ok(text) = std::str::from_utf8(input) else { return };
            let Some(path) = Path::read(text) else { return };
            let below = text[1..].split_once('/').map(|(_, below)| below).expect("a version");
            let plain = percent_decode_str(below).decode_utf8().expect("it was decoded");
            let below = if matches!(path, Path::Role(_)) { &*plain } else { below };
            assert!(written(&path).iter().any(|written| written == below), "{text:?} is {path:?}");
        });
    }

    #[test]
    fn directories_show_what_is_known() {
        assert_eq!(list(Listing::MetaData, &facts()), "iam/\nplacement/");
        assert_eq!(list(Listing::Placement, &facts()), "availability-zone\nregion");
        let known = Facts { instance_id: Some("i-0abc".into()), ..facts() };
        assert_eq!(list(Listing::MetaData, &known), "iam/\ninstance-id\nplacement/");
    }

    #[test]
    fn the_identity_document_has_what_is_known_and_nothing_signed() {
        let document = identity_document(&facts()).unwrap();
        assert_eq!(document, r#"{"availabilityZone":"eu-central-1a","region":"eu-central-1"}"#);
        assert_eq!(identity_document(&Facts::default()), None);
    }

    #[test]
    fn lists_and_the_document_tell_nothing_that_another_path_does_not() {
        let some = |text: &str| Some(text.into());
        let all = Facts {
            region: some("eu-central-1"),
            zone: some("eu-central-1a"),
            zone_id: some("euc1-az2"),
            instance_type: some("m7g.large"),
            instance_id: some("i-0abc"),
        };
        let facts: Vec<_> = FACTS.iter().map(|(_, each)| fact(*each, &all).unwrap()).collect();
        let document: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(&identity_document(&all).unwrap()).unwrap();
        assert!(document.values().all(|value| facts.contains(&value.as_str().unwrap())), "{document:?}");
        for directory in [
            "",
            "meta-data/",
            "meta-data/iam/",
            "meta-data/placement/",
            "dynamic/",
            "dynamic/instance-identity/",
        ] {
            let directory = format!("/latest/{directory}");
            let Some(Path::Listing(listing)) = Path::read(&directory) else { panic!("{directory}") };
            for line in list(listing, &all).lines() {
                assert!(Path::read(&format!("{directory}{line}")).is_some(), "{directory}{line}");
            }
        }
    }

    #[test]
    fn a_role_is_listed_by_the_last_part_of_its_arn() {
        let arn = RoleArn::parse("arn:aws:iam::123456789012:role/a/path/web").unwrap();
        assert_eq!(role_name(&arn), "web");
    }
}
