//! From objects to rows and to the table; the API server's part is in `tests/explain.rs`.

use std::sync::Arc;

use clap::Parser;

use super::*;
use crate::cluster::objects::Object;

const BASE: &str = "arn:aws:iam::111122223333:role/";

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn parsed(flags: &[&str]) -> Args {
    Cli::try_parse_from(["explain"].iter().chain(flags)).unwrap().args
}

fn pod(name: &str, role: Option<&str>) -> Pod {
    let asked = role.map(|role| {
        let mut asked = crate::role::pod_annotation::Asked::default();
        asked.take("iam.amazonaws.com/role", role);
        Arc::new(asked)
    });
    Pod {
        asked,
        asks: true,
        service_account: crate::fakes::account("web"),
        ..crate::fakes::pod(name, "10.0.0.7")
    }
}

/// The rows of namespace `shop` with those annotations, and ServiceAccount `web` with those.
fn explained(flags: &[&str], namespace: &[(&str, &str)], account: &[(&str, &str)], pods: &[Pod]) -> Vec<Row> {
    let (today, config) = understood(parsed(flags)).unwrap();
    let objects = Objects {
        namespaces: vec![Object::new(None, "shop", namespace)],
        accounts: vec![Object::new(Some("shop"), "web", account)],
        pods: pods.to_vec(),
        unread: 0,
    };
    rows(objects, &today, &config)
}

fn verdicts(rows: &[Row]) -> Vec<(&str, Verdict)> {
    rows.iter().map(|row| (&*row.pod, row.verdict)).collect()
}

const KUBE2IAM: [&str; 7] = [
    "--as",
    "kube2iam",
    "--base-role-arn",
    BASE,
    "--role-source",
    "pod-annotation",
    "--allow-role=shop=*role/shop-*",
];

#[test]
fn a_role_that_the_operator_left_out_is_lost_and_the_others_stay() {
    let pods = [pod("a", Some("shop-a")), pod("b", Some("bank-b")), pod("c", None)];
    let rows = explained(&KUBE2IAM, &[], &[], &pods);
    assert_eq!(verdicts(&rows), [("a", Verdict::Same), ("b", Verdict::Loses), ("c", Verdict::None)]);
    assert_eq!(rows[0].rolecall, Role::Role(format!("{BASE}shop-a")));
    assert!(matches!(&rows[1].rolecall, Role::Reason(why) if why.starts_with("RoleNotAllowed")), "{rows:?}");
}

#[test]
fn the_default_role_is_lost_because_there_is_none_here() {
    let rows =
        explained(&[&KUBE2IAM[..], &["--default-role", "least"]].concat(), &[], &[], &[pod("a", None)]);
    assert_eq!(verdicts(&rows), [("a", Verdict::Loses)]);
    assert_eq!(rows[0].today, Role::Role(format!("{BASE}least")));
}

#[test]
fn what_kiam_refuses_and_we_would_give_is_new() {
    let flags = ["--as=kiam", "--base-role-arn", BASE, "--role-source=pod-annotation", "--allow-role=*=*"];
    let pods = [pod("a", Some("shop-a"))];
    assert_eq!(verdicts(&explained(&flags, &[], &[], &pods)), [("a", Verdict::Gains)]);
    let flags = [&flags[..], &["--namespace-restrictions"]].concat();
    assert_eq!(verdicts(&explained(&flags, &[], &[], &pods)), [("a", Verdict::None)]);
    let permitted = [("iam.amazonaws.com/permitted", ".*")];
    assert_eq!(verdicts(&explained(&flags, &permitted, &[], &pods)), [("a", Verdict::Same)]);
    // What kiam's loose ends permit is lost.
    let loose = [("iam.amazonaws.com/permitted", ".*/shop|.*/x")];
    assert_eq!(verdicts(&explained(&flags, &loose, &[], &pods)), [("a", Verdict::Loses)]);
}

#[test]
fn a_role_that_hangs_on_what_cannot_be_read_here_counts_as_one_to_lose() {
    let flags = ["--as=kiam", "--base-role-arn", BASE, "--role-source=pod-annotation", "--allow-role=*=*"];
    let permitted = [("iam.amazonaws.com/permitted", r".*/shop-\pL+")];
    let rows = explained(&flags, &permitted, &[], &[pod("a", Some("shop-a"))]);
    assert_eq!(verdicts(&rows), [("a", Verdict::Loses)]);
    assert!(rows[0].notes[0].contains("today is a guess"), "{rows:?}");
}

#[test]
fn service_accounts_that_were_annotated_before_the_move_keep_the_role() {
    let flags = [
        "--as",
        "kube2iam",
        "--base-role-arn",
        "arn:aws:iam::111122223333:role",
        "--namespace-restriction-format=glob",
    ];
    let annotated = [("rolecall.dev/role-arn", "arn:aws:iam::111122223333:role/a")];
    let pods = [pod("a", Some("a")), pod("b", Some("b")), pod("c", None)];
    let rows = explained(&flags, &[], &annotated, &pods);
    assert_eq!(verdicts(&rows), [("a", Verdict::Same), ("b", Verdict::Changes), ("c", Verdict::Gains)]);
    assert!(rows[1].notes.iter().any(|note| note.contains("not honoured")), "{rows:?}");
    let rows = explained(&flags, &[], &[], &pods[..1]);
    assert_eq!(verdicts(&rows), [("a", Verdict::Loses)]);
}

#[test]
fn finished_pods_are_left_out_and_those_that_would_not_ask_are_told_of() {
    let quiet = Pod { asks: false, ..pod("quiet", Some("shop-a")) };
    let both = Pod { prefers_web_identity: true, ..pod("both", Some("shop-a")) };
    let host = Pod { host_network: true, ..pod("host", Some("shop-a")) };
    let finished = Pod { finished: true, ..pod("finished", Some("shop-a")) };
    let rows = explained(&KUBE2IAM, &[], &[], &[quiet, both, host, finished]);
    assert_eq!(
        verdicts(&rows),
        [("both", Verdict::Same), ("host", Verdict::Gains), ("quiet", Verdict::Same)]
    );
    for (row, word) in rows.iter().zip(["IRSA", "host network", "instance metadata"]) {
        assert!(row.notes.len() == 1 && row.notes[0].contains(word), "{row:?}");
    }
}

#[test]
fn the_table_has_a_line_for_each_pod_and_says_why() {
    let rows = explained(
        &KUBE2IAM,
        &[],
        &[],
        &[pod("a", Some("shop-a")), pod("b", Some("bank-b\u{1b}[2J")), pod("c", None)],
    );
    let table = table::table(&rows);
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("POD") && lines[0].contains("ROLECALL"), "{table}");
    assert!(lines[1].starts_with("shop/a ") && lines[1].ends_with("same"), "{table}");
    assert!(lines[2].starts_with("shop/b "), "{table}");
    assert_eq!(lines.last().unwrap().split_whitespace().collect::<Vec<_>>(), ["shop/c", "web", "-", "-"]);
    assert!(!table.contains('\u{1b}'), "what a tenant wrote moves no cursor: {table:?}");
}

#[test]
fn flags_that_mean_nothing_together_are_all_told() {
    let Mistakes(mistakes) = understood(parsed(&[
        "--as=kiam",
        "--default-role=x",
        "--role-source=pod-annotation",
        "--base-role-arn=x/",
    ]))
    .unwrap_err();
    assert_eq!(mistakes.len(), 3, "{mistakes:?}");
}
