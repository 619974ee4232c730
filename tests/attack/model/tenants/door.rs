//! How pods ask, at either door, and the agent that they ask.
#![allow(clippy::unwrap_used)]

use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::Request;
use http_body_util::BodyExt;
use rolecall::broker::Trail;
use rolecall::fakes::{self, FakeSts, World};
use rolecall::identity::Caller;
use rolecall::identity::authorization::{Authorization, Presented};
use rolecall::identity::pods::PodUid;
use rolecall::role::pod_annotation::{Format, Rules};
use rolecall::role::{Defaults, RoleName, RoleSource};
use rolecall::server::imds::{self, Settings, token::Key};
use rolecall::server::limits::Limits;
use rolecall::server::visitor::Visitor;
use tokio::time::Instant;

use super::event::NAMES;
use super::{Mode, Model, policy};

const LIST: &str = "/latest/meta-data/iam/security-credentials/";

/// One question and its answer: from which state to which it was open.
pub(super) struct Asked {
    pub(super) uid: PodUid,
    pub(super) name: Option<u8>,
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) at: Instant,
    pub(super) answer: Answer,
}

pub(super) enum Answer {
    /// An access key id, and the role if it is said.
    Keys(String, Option<String>),
    /// The name of a role.
    Role(String),
    Session(String),
    Refused(String),
}

impl Model {
    fn caller(&self, uid: &PodUid) -> Caller {
        let number = self.pods.iter().position(|pod| pod == uid).unwrap();
        fakes::caller(address(number), Some(uid))
    }

    pub(super) fn ask(&mut self, uid: &PodUid, kept: bool, name: Option<u8>) {
        let kept = self.kept.get(uid).filter(|_| kept).cloned();
        let caller = kept.unwrap_or_else(|| Arc::new(self.caller(uid)));
        self.kept.insert(uid.clone(), Arc::clone(&caller));
        let (world, number, uid) = (Arc::clone(&self.world), Arc::clone(&self.number), uid.clone());
        let from = number.load(Ordering::Relaxed);
        self.asked.spawn(async move {
            let role = name.map(|name| RoleName::parse(NAMES[usize::from(name)]).unwrap());
            let mut trail = Trail { role, ..Trail::default() };
            let deadline = Instant::now() + Duration::from_millis(900);
            let answer =
                world.app.broker().credentials(&caller, &Presented::Nothing, deadline, &mut trail).await;
            let answer = match answer {
                Ok(served) => {
                    let document: serde_json::Value = serde_json::from_slice(&served.body).unwrap();
                    let text = |field: &str| document[field].as_str().unwrap().to_owned();
                    Answer::Keys(text("AccessKeyId"), Some(text("RoleArn")))
                }
                Err(refusal) => Answer::Refused(refusal.to_string()),
            };
            let (to, at) = (number.load(Ordering::Relaxed), Instant::now());
            Asked { uid, name, from, to, at, answer }
        });
    }

    /// For a session, or with the session token of a pod for its role.
    pub(super) fn ask_metadata(&mut self, uid: &PodUid, with: Option<Option<PodUid>>) {
        let own = with.as_ref().is_some_and(|of| of.as_ref() == Some(uid));
        let token = with.as_ref().map(|of| of.as_ref().map(|of| self.sessions[of].clone()));
        let admission = Arc::new(Limits::default()).admit(self.caller(uid).origin()).unwrap();
        let visitor = Visitor::new(self.caller(uid), admission, Duration::ZERO);
        let (imds, number, uid) = (Arc::clone(&self.imds), Arc::clone(&self.number), uid.clone());
        let from = number.load(Ordering::Relaxed);
        self.asked.spawn(async move {
            let send = async |method: &str, path: &str, header: Option<(&str, &str)>| {
                let mut request =
                    Request::builder().method(method).uri(path).header("host", "169.254.169.254");
                if let Some((name, value)) = header {
                    request = request.header(name, value);
                }
                let answer = imds.answer(&visitor, request.body(()).unwrap()).await.unwrap();
                let status = answer.status().as_u16();
                let body = answer.into_body().collect().await.unwrap().to_bytes();
                (status, String::from_utf8(body.into()).unwrap())
            };
            let answer = match token {
                None => {
                    let ttl = ("x-aws-ec2-metadata-token-ttl-seconds", "21600");
                    match send("PUT", "/latest/api/token", Some(ttl)).await {
                        (200, token) => Answer::Session(token),
                        (status, said) => panic!("a PUT never fails: {status} {said}"),
                    }
                }
                Some(token) => {
                    let header = token.as_deref().map(|token| ("x-aws-ec2-metadata-token", token));
                    let (status, role) = send("GET", LIST, header).await;
                    assert_eq!(status == 401, !own, "{uid}: {role}");
                    if status != 200 {
                        Answer::Refused(role)
                    } else {
                        match send("GET", &format!("{LIST}{role}"), header).await {
                            (200, document) => {
                                let document: serde_json::Value = serde_json::from_str(&document).unwrap();
                                Answer::Keys(document["AccessKeyId"].as_str().unwrap().to_owned(), None)
                            }
                            _ => Answer::Role(role),
                        }
                    }
                }
            };
            let (to, at) = (number.load(Ordering::Relaxed), Instant::now());
            Asked { uid, name: None, from, to, at, answer }
        });
    }
}

pub(super) fn address(number: usize) -> IpAddr {
    IpAddr::from([10, 1, (number / 250) as u8, (number % 250) as u8])
}

/// An agent that has just started on this node.
pub(super) fn agent(by_pod: bool) -> (Arc<World>, Arc<imds::Endpoint>) {
    static NODE: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());
    let source = match by_pod {
        true => RoleSource::PodAnnotation(Rules::new(None, false, Format::Glob).unwrap()),
        false => RoleSource::ServiceAccount,
    };
    let plan = Defaults { source, policy: policy(), ..Defaults::of_node("node-1") };
    let (evidence, nobody) = (Mode::Kernel.source(), std::io::sink());
    let world = World::between(FakeSts::default(), evidence, Authorization::default(), plan, nobody);
    let key = Key::load_or_make(NODE.path()).unwrap();
    let imds = world.app.metadata(Settings { key, v1: false, facts: Arc::default(), passthrough: None });
    (Arc::new(world), imds)
}
