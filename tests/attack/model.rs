//! A cluster as data, an agent that watches it, and an oracle that knows what every answer may be.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rolecall::cache::Served;
use rolecall::fakes::{self, World, denied};
use rolecall::identity::Caller;
use rolecall::identity::evidence::Source;
use rolecall::identity::kernel::Kernel;
use rolecall::identity::pods::{Pod, PodUid};
use rolecall::{broker, cluster, sts};
use tokio::task::JoinSet;

#[path = "model/event.rs"]
mod event;
#[path = "model/oracle.rs"]
mod oracle;
#[path = "model/reused.rs"]
mod reused;
#[path = "model/tenants.rs"]
pub(crate) mod tenants;

use self::oracle::{claims, plan};

pub(crate) use self::event::Event;
pub(crate) use self::reused::ReusedAddress;

/// What the agent goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Kernel,
    Address,
}

impl Mode {
    /// The kernel itself is not asked: evidence is given with each connection.
    fn source(self) -> Source {
        static KERNEL: LazyLock<Arc<Kernel>> = LazyLock::new(|| Arc::new(Kernel::start("/proc").unwrap()));
        match self {
            Self::Kernel => Source::Kernel(Arc::clone(&KERNEL)),
            Self::Address => Source::Address,
        }
    }
}

const ACCOUNTS: u8 = 3;
const ADDRESSES: u8 = 3;
const ROLES: u8 = 3;
/// Nothing that went wrong is remembered longer than this.
const CALM: Duration = Duration::from_secs(70);

/// Runs these events, and a calm at their end.
pub(crate) fn run(mode: Mode, seed: u64, events: &[Event]) -> Result<(), String> {
    in_time(seed, async {
        let mut model = Model::new(mode);
        for event in events.iter().chain([&Event::Calm]) {
            model.apply(*event).await?;
        }
        model.join().await
    })
}

/// On a paused clock, with the agent's own dice loaded.
fn in_time<T>(seed: u64, work: impl Future<Output = T>) -> T {
    fastrand::seed(seed);
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().start_paused(true).build().unwrap().block_on(work)
}

const MOMENT: Duration = Duration::from_millis(1);

/// A ServiceAccount: its UID and its annotations.
type Account = Option<(String, BTreeMap<String, String>)>;

/// Everything that an answer may depend upon, at one moment.
#[derive(Clone, Default)]
struct State {
    etcd: BTreeMap<PodUid, Pod>,
    watched: BTreeMap<PodUid, Pod>,
    /// What a list may have shown of pods that the watch has not: each as it was at some time.
    unwatched: BTreeMap<PodUid, Vec<Pod>>,
    accounts: HashMap<String, Account>,
}

enum Shown {
    Applied(Pod),
    Deleted(PodUid),
}

/// One question and its answer: from which state to which it was open.
struct Asked {
    uid: PodUid,
    address: IpAddr,
    /// The first on its connection.
    first: bool,
    from: usize,
    to: usize,
    answer: Result<Arc<Served>, broker::Error>,
    at: tokio::time::Instant,
}

struct Model {
    mode: Mode,
    world: Arc<World>,
    follower: tokio::task::JoinHandle<()>,
    now: State,
    /// By number; those before `base` nobody asks about any more.
    states: Vec<State>,
    base: usize,
    /// The number of the newest, for whoever is answered.
    number: Arc<AtomicUsize>,
    pods: Vec<PodUid>,
    accounts_of: HashMap<PodUid, String>,
    kept: HashMap<PodUid, Arc<Caller>>,
    pods_to_show: VecDeque<Shown>,
    accounts_to_show: VecDeque<(String, Account)>,
    /// As etcd has them.
    accounts: HashMap<String, Account>,
    generation: usize,
    asked: JoinSet<Asked>,
}

impl Model {
    fn new(mode: Mode) -> Self {
        let world = Arc::new(World::with_evidence(mode.source(), std::io::sink()));
        let follower = world.follow();
        let mut model = Self {
            mode,
            world,
            follower,
            now: State::default(),
            states: vec![],
            base: 0,
            number: Arc::default(),
            pods: vec![],
            accounts_of: HashMap::new(),
            kept: HashMap::new(),
            pods_to_show: VecDeque::new(),
            accounts_to_show: VecDeque::new(),
            accounts: HashMap::new(),
            generation: 0,
            asked: JoinSet::new(),
        };
        for account in 0..ACCOUNTS {
            model.accounts.insert(account_name(account), None);
            model.annotate(account, Some(account), account == 0, [false; 3]);
        }
        model.show_accounts(usize::MAX);
        model.states.push(model.now.clone());
        model
    }

    async fn apply(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Add { account, address, host } => drop(self.add(account, address.map(address_of), host)),
            Event::Reuse { account, address, fate } => drop(self.reuse(account, address_of(address), fate)),
            Event::Move { pod, address } => {
                self.change(pod, |pod| pod.addresses = address.map(address_of).into_iter().collect());
            }
            Event::Terminate { pod } => self.change(pod, |pod| pod.terminating = true),
            Event::Finish { pod } => self.change(pod, |pod| pod.finished = true),
            Event::Delete { pod } => {
                if let Some(uid) = self.pod(pod) {
                    self.delete(&uid);
                }
            }
            Event::WatchPods { events } => self.show_pods(events.into()),
            Event::Relist => {
                self.pods_to_show.clear();
                self.now.watched = self.now.etcd.clone();
                self.now.unwatched.clear();
                self.world.app.pods.reset(self.now.etcd.values().cloned().collect());
            }
            Event::Annotate { account, role, second, longer, policy, revoke } => {
                self.annotate(account, role, second, [longer, policy, revoke]);
            }
            Event::Recreate { account } => {
                let name = account_name(account);
                let old = self.accounts[&name].clone();
                self.accounts_to_show.push_back((name.clone(), None));
                self.generation += 1;
                let new =
                    old.map(|(_, annotations)| (format!("uid-{name}-{}", self.generation), annotations));
                self.set_account(name, new);
            }
            Event::WatchAccounts { events } => self.show_accounts(events.into()),
            Event::Sts { trouble, seconds } => {
                self.world.sts.fail(match trouble {
                    0 => Some(sts::Error::Away("the test said so".into())),
                    1 => Some(denied()),
                    2 => Some(sts::Error::Throttled { code: "Throttling".into() }),
                    _ => None,
                });
                tokio::time::sleep(Duration::from_secs(seconds.into())).await;
            }
            Event::Kube { away } => {
                self.world.cluster.fail(away.then(|| cluster::Error::Away("the test said so".into())));
            }
            Event::Slow { kube, sts } => {
                self.world.cluster.slow(Duration::from_millis(u64::from(kube) * 200));
                self.world.sts.slow(Duration::from_millis(u64::from(sts) * 200));
            }
            Event::Pass { seconds } => {
                tokio::time::sleep(Duration::from_secs(seconds.into())).await;
            }
            Event::Ask { pod, kept, under } => {
                if let Some(uid) = self.pod(pod) {
                    self.ask(&uid, kept, under.map(address_of));
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

    fn add(&mut self, account: u8, address: Option<IpAddr>, host: bool) -> PodUid {
        let (name, number) = (account_name(account), self.pods.len());
        let uid = PodUid::new(format!("uid-{number}"));
        let pod = Pod {
            uid: uid.clone(),
            service_account: fakes::account(&name),
            addresses: address.into_iter().collect(),
            host_network: host,
            asks: number % 2 == 0,
            prefers_web_identity: false,
            asked: None,
            ..fakes::pod(&format!("p{number}"), "192.0.2.1")
        };
        self.pods.push(uid.clone());
        self.accounts_of.insert(uid.clone(), name);
        self.set_pod(pod);
        uid
    }

    fn reuse(&mut self, account: u8, address: IpAddr, fate: u8) -> PodUid {
        let holders: Vec<PodUid> =
            self.now.etcd.values().filter(|pod| claims(pod, address)).map(|pod| pod.uid.clone()).collect();
        for uid in holders {
            match fate {
                0 => self.change_uid(&uid, |pod| pod.terminating = true),
                1 => self.change_uid(&uid, |pod| pod.finished = true),
                _ => self.delete(&uid),
            }
        }
        self.add(account, Some(address), false)
    }

    fn change(&mut self, pod: u8, change: impl FnOnce(&mut Pod)) {
        if let Some(uid) = self.pod(pod) {
            self.change_uid(&uid, change);
        }
    }

    fn change_uid(&mut self, uid: &PodUid, change: impl FnOnce(&mut Pod)) {
        if let Some(mut pod) = self.now.etcd.get(uid).cloned() {
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

    fn delete(&mut self, uid: &PodUid) {
        if self.now.etcd.remove(uid).is_some() {
            self.pods_to_show.push_back(Shown::Deleted(uid.clone()));
            self.world.cluster.set_pods(self.now.etcd.values().cloned().collect());
            self.world.cluster.lose(uid);
        }
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

    fn annotate(&mut self, account: u8, role: Option<u8>, second: bool, [longer, policy, revoke]: [bool; 3]) {
        let mut annotations = BTreeMap::new();
        let mut add = |name: &str, value: String| annotations.insert(format!("rolecall.dev/{name}"), value);
        if let Some(role) = role {
            add("role-arn", format!("arn:aws:iam::123456789012:role/r{role}"));
        }
        if second {
            add("assume-role-arn", "arn:aws:iam::999988887777:role/team".into());
        }
        if longer {
            add("session-duration", "2h".into());
        }
        if policy {
            add("policy-arns", "arn:aws:iam::aws:policy/ReadOnlyAccess".into());
        }
        if revoke {
            add("not-before", rolecall::time::now().to_string());
        }
        let name = account_name(account);
        let uid =
            self.accounts[&name].as_ref().map_or_else(|| format!("uid-{name}-0"), |(uid, _)| uid.clone());
        self.set_account(name, Some((uid, annotations)));
    }

    fn set_account(&mut self, name: String, account: Account) {
        self.accounts_to_show.push_back((name.clone(), account.clone()));
        self.accounts.insert(name, account);
    }

    fn show_accounts(&mut self, count: usize) {
        for _ in 0..count {
            let Some((name, account)) = self.accounts_to_show.pop_front() else { return };
            match &account {
                Some((uid, annotations)) => {
                    self.world.app.accounts.apply(&fakes::account(&name), uid, annotations);
                }
                None => self.world.app.accounts.absent(&fakes::account(&name)),
            }
            self.now.accounts.insert(name, account);
        }
    }

    /// The state is another from here on.
    fn number(&mut self) {
        self.states.push(self.now.clone());
        self.number.store(self.base + self.states.len() - 1, Ordering::Relaxed);
    }

    /// What the pod shows as its own; where that is nothing, an address that nobody else shows.
    fn address(&self, uid: &PodUid) -> IpAddr {
        let shown = self.now.etcd.get(uid).and_then(|pod| pod.addresses.first().copied());
        shown.unwrap_or_else(|| IpAddr::from([10, 0, 9, 9]))
    }

    fn ask(&mut self, uid: &PodUid, kept: bool, under: Option<IpAddr>) {
        let fresh = || {
            let address = under.unwrap_or_else(|| self.address(uid));
            Arc::new(fakes::caller(address, (self.mode == Mode::Kernel).then_some(uid)))
        };
        let kept = self.kept.get(uid).filter(|_| kept).cloned();
        let (first, caller) = (kept.is_none(), kept.unwrap_or_else(fresh));
        self.kept.insert(uid.clone(), Arc::clone(&caller));
        let (world, number, uid) = (Arc::clone(&self.world), Arc::clone(&self.number), uid.clone());
        let from = number.load(Ordering::Relaxed);
        self.asked.spawn(async move {
            let answer = world.credentials(&caller).await;
            let (to, at) = (number.load(Ordering::Relaxed), tokio::time::Instant::now());
            Asked { uid, address: caller.address(), first, from, to, answer, at }
        });
    }

    fn check_answered(&mut self) -> Result<(), String> {
        while let Some(asked) = self.asked.try_join_next() {
            self.check(&asked.unwrap())?;
        }
        if self.asked.is_empty() {
            self.base += self.states.len() - 1;
            self.states.drain(..self.states.len() - 1);
        }
        Ok(())
    }

    async fn join(&mut self) -> Result<(), String> {
        while let Some(asked) = self.asked.join_next().await {
            self.check(&asked.unwrap())?;
        }
        self.check_answered()
    }

    async fn calm(&mut self) -> Result<(), String> {
        self.world.sts.fail(None);
        self.world.cluster.fail(None);
        self.world.sts.slow(Duration::ZERO);
        self.world.cluster.slow(Duration::ZERO);
        self.show_pods(usize::MAX);
        self.show_accounts(usize::MAX);
        self.number();
        tokio::time::sleep(CALM).await;
        self.join().await?;
        let live: Vec<Pod> = self.now.etcd.values().filter(|pod| !pod.finished).cloned().collect();
        for pod in live {
            let address = self.address(&pod.uid);
            let only = self.now.etcd.values().all(|other| {
                other.uid == pod.uid
                    || !(claims(other, address) || other.host_network && other.addresses.contains(&address))
            });
            let known = match self.mode {
                Mode::Kernel => only,
                Mode::Address => only && claims(&pod, address),
            };
            let due = known && !pod.host_network && plan(&self.now, &pod.service_account.name).is_some();
            self.ask(&pod.uid, false, None);
            let asked = self.asked.join_next().await.unwrap().unwrap();
            self.check(&asked)?;
            if let (true, Err(refusal)) = (due, &asked.answer) {
                return Err(format!("{} is refused in a calm: {refusal}", pod.uid));
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

fn account_name(account: u8) -> String {
    ["x", "y", "z"][usize::from(account)].to_owned()
}

fn address_of(address: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, address])
}
