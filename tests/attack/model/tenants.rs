//! Who has which role, by the annotations of ServiceAccounts, pods and namespaces: by name, by a second hop, at both doors, over the
//! agent's restarts. The kernel's evidence is given; what it is worth is the other model's business.
//!
//! The oracle reads no annotation: it knows what was meant by each, and by the rules of the pages what that gives.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rolecall::fakes::{self, World, denied};
use rolecall::identity::Caller;
use rolecall::identity::pods::{Pod, PodUid, ServiceAccountName};
use rolecall::policy::Policy;
use rolecall::role::pod_annotation::{self, Asked as Wish};
use rolecall::server::imds;
use rolecall::{cluster, sts};
use tokio::task::JoinSet;

use super::{CALM, MOMENT, Mode, in_time};

#[path = "tenants/door.rs"]
mod door;
#[path = "tenants/event.rs"]
mod event;
#[path = "tenants/oracle.rs"]
mod oracle;

use self::door::{Answer, Asked, address, agent};
pub(crate) use self::event::Event;
use self::event::{ACCOUNTS, NAMES, NAMESPACES, ROLES, Way};

/// Runs these events, and a calm at their end. `by_pod`: pods ask for their roles, and not their ServiceAccounts.
pub(crate) fn run(by_pod: bool, seed: u64, events: &[Event]) -> Result<(), String> {
    in_time(seed, async {
        let mut model = Model::new(by_pod);
        for event in events.iter().chain([&Event::Calm]) {
            model.apply(*event).await?;
        }
        Ok(())
    })
}

/// What a ServiceAccount's annotations mean.
#[derive(Clone, Debug, Default)]
struct Account {
    uid: String,
    default: Way,
    named: [Option<Way>; 2],
    per_pod: bool,
    not_before: Option<jiff::Timestamp>,
}

/// What a namespace's mean: the roles that the expression and the list permit.
type Permits = (Option<u8>, Option<u8>);

/// What is asked for: the hops to it, the last one last.
type Hops = Vec<String>;

/// Everything that an answer may depend upon, at one moment.
#[derive(Clone, Default)]
struct State {
    etcd: BTreeMap<PodUid, Pod>,
    watched: BTreeMap<PodUid, Pod>,
    /// What a list may have shown of pods that the watch has not: each as it was at some time.
    unwatched: BTreeMap<PodUid, Vec<Pod>>,
    accounts: HashMap<ServiceAccountName, Option<Account>>,
    namespaces: HashMap<Arc<str>, Permits>,
}

enum Shown {
    Applied(Pod),
    Deleted(PodUid),
}

struct Model {
    by_pod: bool,
    world: Arc<World>,
    imds: Arc<imds::Endpoint>,
    follower: tokio::task::JoinHandle<()>,
    now: State,
    states: Vec<State>,
    base: usize,
    number: Arc<AtomicUsize>,
    pods: Vec<PodUid>,
    owners: HashMap<PodUid, ServiceAccountName>,
    kept: HashMap<PodUid, Arc<Caller>>,
    sessions: HashMap<PodUid, String>,
    pods_to_show: VecDeque<Shown>,
    accounts: HashMap<ServiceAccountName, Option<Account>>,
    accounts_to_show: VecDeque<(ServiceAccountName, Option<Account>)>,
    namespaces: HashMap<Arc<str>, Permits>,
    namespaces_to_show: VecDeque<(Arc<str>, Permits)>,
    generation: usize,
    asked: JoinSet<Asked>,
}

fn account_of(namespace: u8, account: u8) -> ServiceAccountName {
    let name = ["x", "y"][usize::from(account)];
    ServiceAccountName { namespace: namespace_of(namespace), name: name.into() }
}

fn namespace_of(namespace: u8) -> Arc<str> {
    ["left", "right"][usize::from(namespace)].into()
}

fn arn(role: u8) -> String {
    format!("arn:aws:iam::123456789012:role/r{role}")
}

/// The operator leaves `left` all but the last role, and `right` all.
fn policy() -> Policy {
    let left = (0..ROLES - 1).map(|role| format!("left={}", arn(role)));
    Policy::parse(&left.chain(["right=*".into()]).collect::<Vec<_>>()).unwrap()
}

impl Account {
    fn annotations(&self, by_pod: bool) -> BTreeMap<String, String> {
        let mut annotations = BTreeMap::new();
        let mut add = |name: &str, value: String| annotations.insert(format!("rolecall.dev/{name}"), value);
        let mut way = |name: &str, (first, second): Way| {
            for (annotation, role) in [("role-arn", first), ("assume-role-arn", second)] {
                if let Some(role) = role {
                    add(&format!("{annotation}{name}"), arn(role));
                }
            }
        };
        way("", self.default);
        for (name, named) in NAMES.iter().zip(self.named).filter(|_| !by_pod) {
            if let Some(named) = named {
                way(&format!(".{name}"), named);
            }
        }
        if self.per_pod {
            add("session-name", "{namespace}.{service-account}.{pod}".into());
        }
        if let Some(moment) = self.not_before {
            add("not-before", moment.to_string());
        }
        annotations
    }
}

impl Model {
    fn new(by_pod: bool) -> Self {
        let (world, imds) = agent(by_pod);
        let follower = world.follow();
        let mut model = Self {
            by_pod,
            world,
            imds,
            follower,
            now: State::default(),
            states: vec![],
            base: 0,
            number: Arc::default(),
            pods: vec![],
            owners: HashMap::new(),
            kept: HashMap::new(),
            sessions: HashMap::new(),
            pods_to_show: VecDeque::new(),
            accounts: HashMap::new(),
            accounts_to_show: VecDeque::new(),
            namespaces: HashMap::new(),
            namespaces_to_show: VecDeque::new(),
            generation: 0,
            asked: JoinSet::new(),
        };
        for namespace in 0..NAMESPACES {
            model.permit(namespace, (None, None));
            for account in 0..ACCOUNTS {
                let default = ((!by_pod).then_some(account), None);
                let account = account_of(namespace, account);
                model.set_account(
                    account,
                    Some(Account { uid: "first".into(), default, ..Account::default() }),
                );
            }
        }
        model.show_rest();
        model.states.push(model.now.clone());
        model
    }

    async fn apply(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Add { namespace, account, role } => self.add(account_of(namespace, account), role),
            Event::Ask { pod, role } => self.change(pod, |pod| pod.asked = wish(role)),
            Event::Finish { pod } => self.change(pod, |pod| pod.finished = true),
            Event::Delete { pod } => {
                if let Some(uid) = self.pod(pod)
                    && self.now.etcd.remove(&uid).is_some()
                {
                    self.pods_to_show.push_back(Shown::Deleted(uid.clone()));
                    self.world.cluster.set_pods(self.now.etcd.values().cloned().collect());
                    self.world.cluster.lose(&uid);
                }
            }
            Event::WatchPods { events } => self.show_pods(events.into()),
            Event::Relist => self.relist(),
            Event::Annotate { namespace, account, default, named, per_pod, revoke } => {
                let name = account_of(namespace, account);
                let before = self.accounts[&name].clone();
                let uid = before.as_ref().map_or_else(|| self.uid(), |before| before.uid.clone());
                let not_before = revoke.then(rolecall::time::now);
                self.set_account(name, Some(Account { uid, default, named, per_pod, not_before }));
            }
            Event::Remove { namespace, account } => self.set_account(account_of(namespace, account), None),
            Event::Recreate { namespace, account } => {
                let name = account_of(namespace, account);
                if let Some(before) = self.accounts[&name].clone() {
                    let uid = self.uid();
                    self.set_account(name.clone(), None);
                    self.set_account(name, Some(Account { uid, ..before }));
                }
            }
            Event::WatchAccounts { events } => self.show_accounts(events.into()),
            Event::Permit { namespace, expression, list } => self.permit(namespace, (expression, list)),
            Event::WatchNamespaces { events } => self.show_namespaces(events.into()),
            Event::Sts { trouble } => self.world.sts.fail(match trouble {
                0 => Some(sts::Error::Away("the test said so".into())),
                1 => Some(denied()),
                2 => Some(sts::Error::Throttled { code: "Throttling".into() }),
                _ => None,
            }),
            Event::Kube { away } => {
                self.world.cluster.fail(away.then(|| cluster::Error::Away("the test said so".into())));
            }
            Event::Slow { kube, sts } => {
                self.world.cluster.slow(Duration::from_millis(u64::from(kube) * 200));
                self.world.sts.slow(Duration::from_millis(u64::from(sts) * 200));
            }
            Event::Pass { seconds } => tokio::time::sleep(Duration::from_secs(seconds.into())).await,
            Event::Restart => self.restart().await?,
            Event::Credentials { pod, kept, name } => {
                // Pods have one role each where they ask for it themselves: asking for another is tried, too.
                if let Some(uid) = self.pod(pod) {
                    self.ask(&uid, kept, name);
                }
            }
            Event::Session { pod } => {
                if let Some(uid) = self.pod(pod) {
                    self.ask_metadata(&uid, None);
                }
            }
            Event::Metadata { pod, token_of } => {
                if let Some(uid) = self.pod(pod) {
                    let token =
                        token_of.and_then(|of| self.pod(of)).filter(|of| self.sessions.contains_key(of));
                    self.ask_metadata(&uid, Some(token));
                }
            }
            Event::Calm => return self.calm().await,
        }
        self.number();
        // No two events are of one moment, nor a list and what comes after it.
        tokio::time::sleep(MOMENT).await;
        self.check_answered()
    }

    fn pod(&self, number: u8) -> Option<PodUid> {
        (!self.pods.is_empty()).then(|| self.pods[usize::from(number) % self.pods.len()].clone())
    }

    fn uid(&mut self) -> String {
        self.generation += 1;
        format!("again-{}", self.generation)
    }

    fn add(&mut self, account: ServiceAccountName, role: Option<u8>) {
        let number = self.pods.len();
        let uid = PodUid::new(format!("uid-p{number}"));
        self.pods.push(uid.clone());
        self.owners.insert(uid.clone(), account.clone());
        let template = fakes::pod(&format!("p{number}"), &address(number).to_string());
        self.set_pod(Pod {
            service_account: account,
            asked: wish(role),
            asks: number.is_multiple_of(2),
            ..template
        });
    }

    fn change(&mut self, pod: u8, change: impl FnOnce(&mut Pod)) {
        if let Some(mut pod) = self.pod(pod).and_then(|uid| self.now.etcd.get(&uid).cloned()) {
            change(&mut pod);
            self.set_pod(pod);
        }
    }

    fn set_pod(&mut self, pod: Pod) {
        self.pods_to_show.push_back(Shown::Applied(pod.clone()));
        if !self.now.watched.contains_key(&pod.uid) {
            self.now.unwatched.entry(pod.uid.clone()).or_default().push(pod.clone());
        }
        self.now.etcd.insert(pod.uid.clone(), pod);
        self.world.cluster.set_pods(self.now.etcd.values().cloned().collect());
    }

    fn relist(&mut self) {
        self.pods_to_show.clear();
        self.now.watched = self.now.etcd.clone();
        self.now.unwatched.clear();
        self.world.app.pods.reset(self.now.etcd.values().cloned().collect());
    }

    fn show_pods(&mut self, count: usize) {
        for _ in 0..count {
            match self.pods_to_show.pop_front() {
                Some(Shown::Applied(pod)) => {
                    self.now.unwatched.remove(&pod.uid);
                    self.now.watched.insert(pod.uid.clone(), pod.clone());
                    self.world.app.pods.apply(pod);
                }
                Some(Shown::Deleted(uid)) => {
                    self.now.unwatched.remove(&uid);
                    self.now.watched.remove(&uid);
                    self.world.app.pods.delete(&uid);
                }
                None => return,
            }
        }
    }

    fn set_account(&mut self, name: ServiceAccountName, account: Option<Account>) {
        self.accounts_to_show.push_back((name.clone(), account.clone()));
        self.accounts.insert(name, account);
    }

    fn show_accounts(&mut self, count: usize) {
        for _ in 0..count {
            let Some((name, account)) = self.accounts_to_show.pop_front() else { return };
            match &account {
                Some(shown) => {
                    let uid = format!("{}-{}", name, shown.uid);
                    self.world.app.accounts.apply(&name, &uid, &shown.annotations(self.by_pod));
                }
                None => self.world.app.accounts.absent(&name),
            }
            self.now.accounts.insert(name, account);
        }
    }

    fn permit(&mut self, namespace: u8, permits: Permits) {
        let name = namespace_of(namespace);
        self.namespaces.insert(Arc::clone(&name), permits);
        self.namespaces_to_show.push_back((name, permits));
    }

    fn show_namespaces(&mut self, count: usize) {
        for _ in 0..count {
            let Some((name, permits)) = self.namespaces_to_show.pop_front() else { return };
            let of = |set: u8| (0..ROLES).filter(move |role| set & 1 << role != 0).map(arn);
            let expression = permits.0.map(|set| of(set).collect::<Vec<_>>().join("|"));
            let list = permits.1.map(|set| serde_json::json!(of(set).collect::<Vec<_>>()).to_string());
            let annotations =
                [(pod_annotation::PERMITTED, expression), (pod_annotation::ALLOWED_ROLES, list)];
            let annotations =
                annotations.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text?)));
            self.world.app.accounts.apply_namespace(&name, &annotations.collect());
            self.now.namespaces.insert(name, permits);
        }
    }

    fn show_rest(&mut self) {
        self.show_pods(usize::MAX);
        self.show_accounts(usize::MAX);
        self.show_namespaces(usize::MAX);
    }

    async fn restart(&mut self) -> Result<(), String> {
        self.join().await?;
        self.follower.abort();
        (self.world, self.imds) = agent(self.by_pod);
        self.follower = self.world.follow();
        self.kept.clear();
        // Connections end with it; its watches begin with lists of now.
        self.world.cluster.set_pods(self.now.etcd.values().cloned().collect());
        for gone in self.pods.iter().filter(|uid| !self.now.etcd.contains_key(*uid)) {
            self.world.cluster.lose(gone);
        }
        self.relist();
        (self.accounts_to_show, self.namespaces_to_show) = Default::default();
        self.accounts_to_show.extend(self.accounts.clone());
        self.namespaces_to_show.extend(self.namespaces.clone());
        (self.now.accounts, self.now.namespaces) = Default::default();
        Ok(())
    }

    /// The state is another from here on.
    fn number(&mut self) {
        self.states.push(self.now.clone());
        self.number.store(self.base + self.states.len() - 1, Ordering::Relaxed);
    }

    fn check_answered(&mut self) -> Result<(), String> {
        while let Some(asked) = self.asked.try_join_next() {
            self.check(asked.unwrap())?;
        }
        if self.asked.is_empty() {
            self.base += self.states.len() - 1;
            self.states.drain(..self.states.len() - 1);
        }
        Ok(())
    }

    async fn join(&mut self) -> Result<(), String> {
        while let Some(asked) = self.asked.join_next().await {
            self.check(asked.unwrap())?;
        }
        self.check_answered()
    }

    async fn calm(&mut self) -> Result<(), String> {
        self.world.sts.fail(None);
        self.world.cluster.fail(None);
        self.world.sts.slow(Duration::ZERO);
        self.world.cluster.slow(Duration::ZERO);
        self.show_rest();
        self.number();
        tokio::time::sleep(CALM).await;
        self.join().await?;
        let live: Vec<Pod> = self.now.etcd.values().filter(|pod| !pod.finished).cloned().collect();
        for pod in live {
            for name in [None, Some(0), Some(1)] {
                let due = self.way(&pod, name, &self.now, &self.now).is_some();
                self.ask(&pod.uid, false, name);
                let asked = self.asked.join_next().await.unwrap().unwrap();
                let given = match &asked.answer {
                    Answer::Refused(why) => Err(why.clone()),
                    _ => Ok(()),
                };
                self.check(asked)?;
                if due != given.is_ok() {
                    return Err(format!("{}, name {name:?}, in a calm: due {due}, {given:?}", pod.uid));
                }
            }
        }
        self.check_answered()
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

fn wish(role: Option<u8>) -> Option<Arc<Wish>> {
    role.map(|role| Arc::new(Wish { role: Some(arn(role).into()), ..Wish::default() }))
}
