//! Trouble on demand, and the count of calls.

use rolecall::emulator::Fault;
use serde_json::{Value, json};

use crate::world::{WEB, World, raw};

#[tokio::test]
async fn it_throttles_fails_and_answers_nonsense_on_demand() {
    let world = World::new().await;
    let token = world.token(|_| {});
    let throttle = r#"{"action": "AssumeRoleWithWebIdentity", "code": "Throttling", "count": 2}"#;
    assert_eq!(world.control("POST", "faults", throttle).await.status, 200);
    for _ in 0..2 {
        world.web_identity(&token, &[]).await.assert_refused(400, "Throttling", "Rate exceeded");
    }
    assert_eq!(world.web_identity(&token, &[]).await.status, 200);

    let fault = |code: &str| Fault { code: Some(code.to_owned()), count: Some(1), ..Fault::default() };
    for (code, status) in [("ServiceUnavailable", 503), ("InternalFailure", 500), ("IDPRejectedClaim", 403)] {
        world.emulator.add_fault(fault(code)).unwrap();
        assert_eq!(world.web_identity(&token, &[]).await.refusal(), (status, code.to_owned()));
    }
    let page = Fault { body: Some("<html>".to_owned()), status: Some(502), ..Fault::default() };
    world.emulator.add_fault(page).unwrap();
    let answer = world.web_identity(&token, &[]).await;
    assert_eq!((answer.status, answer.body.as_str()), (502, "<html>"));
    assert_eq!(world.control("DELETE", "faults", "").await.status, 200);
    assert_eq!(world.web_identity(&token, &[]).await.status, 200);

    let mistake = world.control("POST", "faults", r#"{"code": "Nonsense"}"#).await;
    assert_eq!(mistake.status, 400);
    assert!(mistake.body.contains("Nonsense"), "{}", mistake.body);
}

#[tokio::test]
async fn a_slow_call_is_counted_when_it_arrives() {
    let world = World::new().await;
    world.emulator.add_fault(Fault { delay_ms: 600_000, ..Fault::default() }).unwrap();
    let token = world.token(|_| {});
    let mut slow = std::pin::pin!(world.web_identity(&token, &[]));
    let counted = async {
        while world.emulator.received("AssumeRoleWithWebIdentity") == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        answer = &mut slow => panic!("answered at once: {}", answer.body),
        () = counted => {}
    }
    let calls = world.emulator.calls();
    assert_eq!((calls[0].received, calls[0].results.len()), (1, 0));
}

#[tokio::test]
async fn calls_are_counted_by_action_role_and_result() {
    let world = World::new().await;
    let token = world.token(|_| {});
    world.web_identity(&token, &[]).await;
    world.web_identity(&token, &[("DurationSeconds", "1")]).await;
    world.web_identity(&token, &[("RoleArn", "arn:aws:iam::111122223333:role/stranger")]).await;
    world.post(&[("Action", "ListUsers")]).await;
    let calls: Value = serde_json::from_str(&world.control("GET", "calls", "").await.body).unwrap();
    assert_eq!(
        calls["calls"],
        json!([
            {"action": "AssumeRoleWithWebIdentity", "role": "", "received": 1, "results": {"AccessDenied": 1}},
            {"action": "AssumeRoleWithWebIdentity", "role": WEB, "received": 2, "results": {"ok": 1, "ValidationError": 1}},
            {"action": "other", "role": "", "received": 1, "results": {"InvalidAction": 1}},
        ])
    );
}

#[tokio::test]
async fn a_web_page_cannot_add_a_fault() {
    let world = World::new().await;
    let body = r#"{"code": "Throttling"}"#;
    let head = format!(
        "POST /_emulator/faults HTTP/1.1\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n",
        body.len()
    );
    assert_eq!(raw(&world.url, &head, body).await.status, 415);
    assert_eq!(world.web_identity(&world.token(|_| {}), &[]).await.status, 200);
}
