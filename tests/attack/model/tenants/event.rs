//! What tenants and a cluster do to who has which role.

/// Of two namespaces each.
pub(super) const ACCOUNTS: u8 = 2;
pub(super) const NAMESPACES: u8 = 2;
pub(super) const ROLES: u8 = 3;
/// Names that further roles have.
pub(super) const NAMES: [&str; 2] = ["a", "b"];

/// The roles that an annotation names: a first one, and one that it is to assume.
pub(super) type Way = (Option<u8>, Option<u8>);

/// Numbers stand for whatever is there under them, modulo how many there are: so any part of a list of events is one, too.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// A pod of that ServiceAccount, that asks for a role of its own.
    Add {
        namespace: u8,
        account: u8,
        role: Option<u8>,
    },
    /// Its annotation is another one.
    Ask {
        pod: u8,
        role: Option<u8>,
    },
    Finish {
        pod: u8,
    },
    Delete {
        pod: u8,
    },
    WatchPods {
        events: u8,
    },
    Relist,
    /// A ServiceAccount's default role, those that it has by name, and whether all before now is revoked.
    Annotate {
        namespace: u8,
        account: u8,
        default: Way,
        named: [Option<Way>; 2],
        per_pod: bool,
        revoke: bool,
    },
    Remove {
        namespace: u8,
        account: u8,
    },
    /// Deleted, and made again under its name, with its annotations.
    Recreate {
        namespace: u8,
        account: u8,
    },
    WatchAccounts {
        events: u8,
    },
    /// Which roles kiam's expression and kube2iam's list permit there: a bit for each.
    Permit {
        namespace: u8,
        expression: Option<u8>,
        list: Option<u8>,
    },
    WatchNamespaces {
        events: u8,
    },
    Sts {
        trouble: u8,
    },
    Kube {
        away: bool,
    },
    Slow {
        kube: u8,
        sts: u8,
    },
    Pass {
        seconds: u16,
    },
    /// Another agent takes this one's place, with no memory but the key of instance metadata.
    Restart,
    /// A pod asks for the default role, or for one by name.
    Credentials {
        pod: u8,
        kept: bool,
        name: Option<u8>,
    },
    /// A pod asks instance metadata for a session.
    Session {
        pod: u8,
    },
    /// A pod asks instance metadata for its role and then for the document, with the session token of that pod, or none.
    Metadata {
        pod: u8,
        token_of: Option<u8>,
    },
    /// Everything is shown, and all trouble is over for long enough: each has what is its own, and is refused the rest.
    Calm,
}

impl Event {
    pub(crate) fn random(random: &mut fastrand::Rng) -> Self {
        let pod = random.u8(..);
        let (namespace, account) = (random.u8(..NAMESPACES), random.u8(..ACCOUNTS));
        let role = |random: &mut fastrand::Rng, of: u8| (random.u8(..of) > 0).then(|| random.u8(..ROLES));
        let events = random.u8(1..5);
        match random.u8(..44) {
            0..=3 => Self::Add { namespace, account, role: role(random, 6) },
            4..=6 => Self::Ask { pod, role: role(random, 5) },
            7 => Self::Finish { pod },
            8 => Self::Delete { pod },
            9..=12 => Self::WatchPods { events },
            13 => Self::Relist,
            14..=18 => {
                let way = |random: &mut fastrand::Rng| (role(random, 4), role(random, 2));
                let default = way(random);
                let named = [(); 2].map(|()| random.bool().then(|| way(random)));
                let (per_pod, revoke) = (random.u8(..4) == 0, random.u8(..4) == 0);
                Self::Annotate { namespace, account, default, named, per_pod, revoke }
            }
            19 => Self::Remove { namespace, account },
            20 => Self::Recreate { namespace, account },
            21..=23 => Self::WatchAccounts { events },
            24 => {
                let mut set = || random.bool().then(|| random.u8(..1 << ROLES));
                Self::Permit { namespace, expression: set(), list: set() }
            }
            25 => Self::WatchNamespaces { events },
            26 => Self::Sts { trouble: random.u8(..5) },
            27 => Self::Kube { away: random.bool() },
            28 => Self::Slow { kube: random.u8(..8), sts: random.u8(..8) },
            29..=31 => Self::Pass { seconds: [0, 1, 10, 100, 1000, 3000][random.usize(..6)] },
            32 => Self::Restart,
            33..=37 => {
                Self::Credentials { pod, kept: random.bool(), name: random.bool().then(|| random.u8(..2)) }
            }
            38..=39 => Self::Session { pod },
            40..=42 => {
                let token_of = match random.u8(..6) {
                    0 => None,
                    1 => Some(random.u8(..)),
                    _ => Some(pod),
                };
                Self::Metadata { pod, token_of }
            }
            _ => Self::Calm,
        }
    }
}
