//! `rolecall net verify`: what it proves, and what it names.

use crate::net::*;
use crate::netns::Node;

#[test]
fn verify_is_good_when_our_agent_answers_everywhere() {
    let Some(node) = Node::new("verify_good") else { return };
    install(&node, &[]);
    let agent = FakeAgent::start(&node, "the-word", &ALL);
    let proof = agent.verify(&node, &[]);
    assert!(proof.status.success(), "{}", text(&proof));
    assert_eq!(text(&proof).matches("our agent answers").count(), 3, "{}", text(&proof));
}

#[test]
fn verify_names_an_impostor() {
    let Some(node) = Node::new("verify_impostor") else { return };
    install(&node, &[]);
    let agent = FakeAgent::start(&node, "the-word", &["169.254.170.23:9902", "[fd00:ec2::23]:9902"]);
    serve(listen(&node, ALL[2].parse().unwrap()), "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned());
    let proof = agent.verify(&node, &[]);
    assert_eq!(proof.status.code(), Some(1));
    assert!(
        text(&proof).contains("FAILED  169.254.170.2:9902: answered by something other"),
        "{}",
        text(&proof)
    );
}

#[test]
fn verify_names_an_agent_that_was_left_behind() {
    let Some(node) = Node::new("verify_old") else { return };
    install(&node, &[]);
    let _old = FakeAgent::start(&node, "the-old-word", &ALL);
    let new = FakeAgent::start(&node, "the-word", &[]);
    let proof = new.verify(&node, &[]);
    assert_eq!(proof.status.code(), Some(1));
    assert_eq!(text(&proof).matches("another rolecall agent").count(), 3, "{}", text(&proof));
}

#[test]
fn verify_names_an_address_where_nobody_answers() {
    let Some(node) = Node::new("verify_nobody") else { return };
    install(&node, &[]);
    let agent = FakeAgent::start(&node, "the-word", &ALL[..2]);
    let proof = agent.verify(&node, &[]);
    assert_eq!(proof.status.code(), Some(1));
    assert!(text(&proof).contains("FAILED  169.254.170.2:9902: cannot connect"), "{}", text(&proof));
}

#[test]
fn verify_names_an_agent_that_is_not_there() {
    let Some(node) = Node::new("verify_no_agent") else { return };
    install(&node, &[]);
    let proof = net(&node, "verify", &["--local-socket", "/run/no-agent.sock"]);
    assert_eq!(proof.status.code(), Some(1));
    assert!(
        text(&proof).contains("cannot ask the agent who it is at /run/no-agent.sock"),
        "{}",
        text(&proof)
    );
}

#[test]
fn verify_names_what_is_missing_on_the_node() {
    let Some(node) = Node::new("verify_missing") else { return };
    install(&node, &[]);
    let agent = FakeAgent::start(&node, "the-word", &ALL);
    nft(&node, "flush chain inet rolecall relative_uri");
    let link = links_of(&node, "169.254.170.23").remove(0);
    node.ip(&format!("address del 169.254.170.23/32 dev {link}"));
    let proof = agent.verify(&node, &[]);
    assert_eq!(proof.status.code(), Some(1));
    assert!(text(&proof).contains("FAILED  169.254.170.23: on no link of this node"), "{}", text(&proof));
    assert!(
        text(&proof).contains("FAILED  rules: missing in table inet rolecall: `ip daddr"),
        "{}",
        text(&proof)
    );
}

#[test]
fn verify_names_a_rule_in_our_table_that_is_not_ours() {
    let Some(node) = Node::new("verify_foreign") else { return };
    install(&node, &["--redirect-eks-port"]);
    let agent = FakeAgent::start(&node, "the-word", &ALL);
    assert!(agent.verify(&node, &["--redirect-eks-port"]).status.success());
    nft(&node, "add rule inet rolecall relative_uri ip daddr 169.254.170.2 drop");
    let proof = agent.verify(&node, &["--redirect-eks-port"]);
    assert!(
        text(&proof).contains("not ours, but in table inet rolecall: `ip daddr 169.254.170.2 drop`"),
        "{}",
        text(&proof)
    );
}

#[test]
fn verify_without_any_right_proves_all_but_the_rules_and_says_so() {
    let Some(node) = Node::new("verify_no_rights") else { return };
    install(&node, &[]);
    let agent = FakeAgent::start(&node, "the-word", &ALL);
    let said =
        with_capabilities(&node, "-all", "verify", &["--local-socket", agent.socket.to_str().unwrap()]);
    assert!(said.status.success(), "{}", text(&said));
    assert!(text(&said).contains("warning rules: not checked"), "{}", text(&said));
}
