//! Both tools' annotations as they are found in clusters, and as an attacker would write them.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::*;

const BASE: &str = "arn:aws:iam::111122223333:role/";

fn rules() -> Rules {
    Rules::new(Some(BASE), false, Format::Glob).unwrap()
}

fn account() -> ServiceAccountName {
    ServiceAccountName { namespace: "team-a".into(), name: "web".into() }
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn asked(pairs: &[(&str, &str)]) -> Asked {
    let mut asked = Asked::default();
    for (name, value) in pairs {
        asked.take(name, value);
    }
    asked
}

fn role(text: &str) -> RoleArn {
    rules().role(text).unwrap()
}

/// Does a namespace with these annotations permit the role?
fn permits(rules: &Rules, namespace: &[(&str, &str)], text: &str) -> bool {
    rules.permits(&Namespace::of(&map(namespace)), &rules.role(text).unwrap()).is_ok()
}

fn annotations(pod: &[(&str, &str)], of_account: &[(&str, &str)]) -> Result<BTreeMap<String, String>, Error> {
    let policy = Policy::default();
    rules().annotations(&account(), &asked(pod), &Namespace::default(), &map(of_account), &policy)
}

#[test]
fn a_name_stands_behind_the_base_arn_with_its_path_and_an_arn_for_itself() {
    for (text, arn) in [
        ("app", "arn:aws:iam::111122223333:role/app"),
        ("/app", "arn:aws:iam::111122223333:role/app"),
        ("team/app", "arn:aws:iam::111122223333:role/team/app"),
        (" app\n", "arn:aws:iam::111122223333:role/app"),
        ("arn:aws:iam::999999999999:role/theirs", "arn:aws:iam::999999999999:role/theirs"),
    ] {
        assert_eq!(role(text).as_str(), arn, "{text:?}");
    }
    assert!(Rules::default().role("app").unwrap_err().contains("--base-role-arn"));
    assert_eq!(
        Rules::default().role("arn:aws:iam::111122223333:role/app").unwrap().as_str(),
        role("app").as_str()
    );
}

#[test]
fn no_name_leads_out_of_the_base_arn() {
    for text in [
        "",
        "/",
        "//app",
        "../app",
        "a/../b",
        "./app",
        "a//b",
        "app/",
        "x:role/app",
        "ARN:aws:iam::999999999999:role/x",
        "iam::999999999999:role/x",
        "app\narn:aws:iam::999999999999:role/x",
        "app*",
        "app?",
        "app\0",
        "äpp",
        "a b",
    ] {
        assert!(rules().role(text).is_err(), "{text:?}");
    }
    assert!(rules().role(&"a".repeat(3000)).is_err());
}

#[test]
fn the_base_arn_ends_with_a_slash_and_makes_a_role_of_every_name() {
    for base in [BASE, "arn:aws-cn:iam::111122223333:role/team/", "arn:aws:iam:::role/"] {
        Rules::new(Some(base), false, Format::Glob).unwrap();
    }
    for base in [
        "",
        "arn:aws:iam::111122223333:role",
        "arn:aws:iam::111122223333:user/",
        "arn:aws:iam::1:role/",
        "role/",
    ] {
        assert!(Rules::new(Some(base), false, Format::Glob).is_err(), "{base:?}");
    }
}

#[test]
fn kiams_expression_must_match_the_whole_arn() {
    let permitted =
        |expression: &str, text: &str| permits(&rules(), &[(permitted::PERMITTED, expression)], text);
    assert!(permitted(".*", "app"));
    assert!(permitted(".*/team-a", "team-a"));
    assert!(permitted("arn:aws:iam::111122223333:role/(team-a|team-b)", "team-b"));
    assert!(permitted("^arn:aws:iam::[0-9]{12}:role/app$", "app"));
    assert!(permitted(r"arn:aws:iam::\d+:role/[[:alpha:]]+", "app"));
    for (expression, text) in [
        ("team-a", "team-a"),
        (".*team-a", "xteam-ab"),
        (".*/team-a", "team-ab"),
        (".*/team-a", "xteam-a"),
        // kiam puts ^ and $ around it, which bind closer than the bar: each half would match a part.
        ("arn:aws:iam::111122223333:role/a|b", "ab"),
        (".*/a|nothing", "a-and-more"),
        // What would close our own group and open another.
        (".*/a)|(?:.*", "b"),
        ("x)|(.*", "b"),
        // Flags of its own that would move the ends.
        ("(?m).*/a", "ab"),
        ("(?x).*/a # ", "ab"),
        // Brackets and mistakes to Go, which an expression here could be without.
        (r".*/app\>", "app"),
        ("(?x) .* /app", "app"),
        (".**", "app"),
        ("", "a"),
        ("[", "a"),
        ("(?=.*)", "a"),
    ] {
        assert!(!permitted(expression, text), "{expression:?} on {text:?}");
    }
}

#[test]
fn kube2iams_list_has_names_arns_and_globs() {
    let allowed = |list: &str, text: &str| permits(&rules(), &[(permitted::ALLOWED_ROLES, list)], text);
    for (list, text) in [
        (r#"["app"]"#, "app"),
        (r#"["other", "app"]"#, "app"),
        (r#"["team/*"]"#, "team/app"),
        (r#"["*"]"#, "any/thing"),
        (r#"["arn:aws:iam::111122223333:role/team/*-app"]"#, "team/an-app"),
        (r#"["arn:*"]"#, "arn:aws:iam::999999999999:role/theirs"),
        ("[\n  \"app\"\n]\n", "app"),
    ] {
        assert!(allowed(list, text), "{list} on {text}");
    }
    for (list, text) in [
        (r#"["app"]"#, "app2"),
        (r#"["app"]"#, "team/app"),
        (r#"["team/*"]"#, "team-b/app"),
        // A name stands for one under the base ARN alone.
        (r#"["*"]"#, "arn:aws:iam::999999999999:role/theirs"),
        (r#"["app"]"#, "arn:aws:iam::999999999999:role/app"),
        ("[]", "app"),
        ("", "app"),
        ("app", "app"),
        (r#""app""#, "app"),
        (r#"["app", 1]"#, "app"),
        (r#"{"app": true}"#, "app"),
        (r#"["app"] ["app"]"#, "app"),
    ] {
        assert!(!allowed(list, text), "{list} on {text}");
    }
}

#[test]
fn a_list_of_expressions_is_over_whole_names_where_kube2iam_takes_a_part() {
    let rules = Rules::new(Some(BASE), false, Format::Regexp).unwrap();
    let allowed = |list: &str, text: &str| permits(&rules, &[(permitted::ALLOWED_ROLES, list)], text);
    assert!(allowed(r#"["team/.*"]"#, "team/app"));
    assert!(allowed(r#"["arn:aws:iam::[0-9]+:role/app"]"#, "app"));
    assert!(allowed(r#"["[", "app"]"#, "app"), "one bad entry takes nothing from the others");
    assert!(!allowed(r#"["app"]"#, "app-admin"));
    assert!(!allowed(r#"["app|x"]"#, "app-admin"));
    assert!(!allowed(r#"["a)|(?:.*"]"#, "b"));
    // Its dots and brackets are none of the base ARN's.
    assert!(!allowed(r#"["app"]"#, "arn:aws:iam::999999999999:role/app"));
}

#[test]
fn what_both_annotations_amount_to_is_the_table_of_the_page() {
    let page = include_str!("../../../docs/moving-in.md");
    let (_, rows) = page.split_once("| `permitted` | `allowed-roles` |").expect("the page has the table");
    let open = rules();
    let restricted = Rules::new(Some(BASE), true, Format::Glob).unwrap();
    let mut count = 0;
    for row in rows.lines().skip(2).take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let mut namespace = Vec::new();
        for (cell, name, yes, no) in [
            (cells[1], PERMITTED, ".*/app", ".*/other"),
            (cells[2], ALLOWED_ROLES, r#"["app"]"#, r#"["other"]"#),
        ] {
            match cell {
                "absent" => {}
                "matches" => namespace.push((name, yes)),
                "does not" => namespace.push((name, no)),
                other => panic!("{other}"),
            }
        }
        for (cell, rules) in [(cells[3], &open), (cells[4], &restricted)] {
            assert_eq!(cell == "yes", permits(rules, &namespace, "app"), "{row}");
        }
        count += 1;
    }
    assert_eq!(count, 8);
}

#[test]
fn an_expression_of_any_kind_costs_little() {
    let long = format!("{BASE}{}", "a".repeat(1900));
    let many = format!("({})*", (0..200).map(|i| format!("a{i}?")).collect::<Vec<_>>().join("|"));
    let deep = format!("{}a{}", "(".repeat(2000), ")*".repeat(2000));
    for expression in [
        "(a*)*".repeat(300),
        "((a{900}){900}){900}".into(),
        "(a|aa)+".repeat(500),
        ".*".repeat(2000),
        many,
        deep,
        "a".repeat(1 << 20),
        "(.?){2000}".into(),
        "(a?){700}a{700}".into(),
    ] {
        let begun = Instant::now();
        permits(&rules(), &[(permitted::PERMITTED, &expression)], &long);
        // Unoptimized, on a machine that builds other things.
        assert!(begun.elapsed() < Duration::from_secs(3), "{:.40}: {:?}", expression, begun.elapsed());
    }
    // A whole list of them costs little more than one: its entries share their bounds.
    let rules = Rules::new(Some(BASE), false, Format::Regexp).unwrap();
    for entry in ["(a?){300}x", "(.?){99}", "(.*){5000}", "((a{9}){9}){9}", "[", "((((a*)*)*)*)*b"] {
        let list = serde_json::to_string(&[entry; 256][..]).unwrap();
        let begun = Instant::now();
        assert!(!permits(&rules, &[(permitted::ALLOWED_ROLES, &list)], &long), "{entry}");
        assert!(begun.elapsed() < Duration::from_secs(3), "256 of {entry}: {:?}", begun.elapsed());
    }
}

#[test]
fn the_expressions_of_a_list_share_their_bounds() {
    let rules = Rules::new(Some(BASE), false, Format::Regexp).unwrap();
    let why = |entries: &[&str]| {
        let list = serde_json::to_string(entries).unwrap();
        let namespace = Namespace::of(&map(&[(permitted::ALLOWED_ROLES, &list)]));
        rules.permits(&namespace, &rules.role("app").unwrap()).map_err(|forbidden| forbidden.reason)
    };
    let long = "a".repeat(100);
    why(&[&[&*long; 40][..], &["app"]].concat()).unwrap();
    let filler = format!("({long}|app)");
    why(&[&[&*long; 39][..], &[&*filler]].concat()).unwrap();
    let reason = why(&[&["app"][..], &[&*long; 41]].concat()).unwrap_err();
    assert_eq!(reason, "its expressions have more than 4096 bytes together");
    why(&["app", "(a?){300}x"]).unwrap();
    // What one alone may take is too much for one of many.
    why(&["a(p|(b?){300})p"]).unwrap();
    let reason = why(&["a(p|(b?){300})p"; 20]).unwrap_err();
    assert!(reason.contains("one that is too large"), "{reason}");
}

#[test]
fn the_pods_role_is_the_plans() {
    let merged = annotations(&[(ROLE, "app")], &[("rolecall.dev/session-duration", "30m")]).unwrap();
    assert_eq!(merged, map(&[(ROLE_ARN, role("app").as_str()), ("rolecall.dev/session-duration", "30m")]));
    assert!(matches!(annotations(&[], &[]), Err(Error::NoPodRole { .. })));
    // The ServiceAccount's own role is nobody's default in this mode.
    assert!(matches!(annotations(&[], &[(ROLE_ARN, role("app").as_str())]), Err(Error::NoPodRole { .. })));
    assert!(matches!(annotations(&[(ROLE, "../app")], &[]), Err(Error::InvalidRole { .. })));
}

#[test]
fn a_service_account_that_leads_to_another_role_is_a_contradiction() {
    let (mine, other) = (role("app").to_string(), role("other").to_string());
    let pod = [(ROLE, "app")];
    for equal in [
        vec![(ROLE_ARN, &*mine)],
        vec![(EKS_ROLE_ARN, &*mine)],
        vec![(ROLE_ARN, &*other), (ASSUME_ROLE_ARN, &*mine)],
        // As in the other mode, the first of the two counts.
        vec![(ROLE_ARN, &*mine), (EKS_ROLE_ARN, &*other)],
    ] {
        let merged = annotations(&pod, &equal).unwrap();
        assert_eq!(merged, map(&equal), "nothing of the ServiceAccount's is lost");
    }
    for different in [
        vec![(ROLE_ARN, &*other)],
        vec![(EKS_ROLE_ARN, &*other)],
        vec![(ROLE_ARN, &*mine), (ASSUME_ROLE_ARN, &*other)],
        vec![(ASSUME_ROLE_ARN, &*other)],
        vec![("rolecall.dev/role-arn.audit", &*mine)],
    ] {
        let error = annotations(&pod, &different).unwrap_err();
        assert!(matches!(error, Error::InvalidPlan { .. }), "{different:?}: {error}");
    }
}

#[test]
fn external_id_and_session_name_are_the_pods_unless_the_service_account_has_others() {
    let pod = [(ROLE, "app"), (POD_EXTERNAL_ID, "x-1"), (POD_SESSION_NAME, "{pod} of web")];
    let merged = annotations(&pod, &[]).unwrap();
    assert_eq!(merged[EXTERNAL_ID], "x-1");
    assert_eq!(merged[SESSION_NAME], "-pod--of-web", "a name, and no template");
    annotations(&pod, &[(EXTERNAL_ID, "x-1")]).unwrap();
    for of_account in [(EXTERNAL_ID, "x-2"), (SESSION_NAME, "{namespace}")] {
        let error = annotations(&pod, &[of_account]).unwrap_err();
        assert!(
            matches!(&error, Error::InvalidPlan { annotation, .. } if annotation == of_account.0),
            "{error}"
        );
    }
}

#[test]
fn a_value_that_is_too_long_to_mean_anything_is_kept_as_such_and_no_longer() {
    let long = format!("{BASE}{}", "a".repeat(200_000));
    let kept = asked(&[(ROLE, &long), ("team", "a")]);
    assert_eq!(kept.role.as_ref().map(|role| role.len()), Some(LONGEST + 1));
    assert!(rules().role(kept.role.as_deref().unwrap()).is_err());
}
