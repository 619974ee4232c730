//! What can happen in a cluster.

use super::{ACCOUNTS, ADDRESSES, ROLES};

/// Numbers stand for whatever is there under them, modulo how many there are: so any part of a list of events is one, too.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// A pod, with an address or not yet.
    Add {
        account: u8,
        address: Option<u8>,
        host: bool,
    },
    /// The last pod under an address goes, one way or the other, and another is there at once.
    Reuse {
        account: u8,
        address: u8,
        fate: u8,
    },
    Move {
        pod: u8,
        address: Option<u8>,
    },
    Terminate {
        pod: u8,
    },
    Finish {
        pod: u8,
    },
    Delete {
        pod: u8,
    },
    /// So much of what happened to pods is shown by their watch.
    WatchPods {
        events: u8,
    },
    /// That watch is begun anew.
    Relist,
    Annotate {
        account: u8,
        role: Option<u8>,
        /// And with its session another one, the same for all accounts.
        second: bool,
        longer: bool,
        policy: bool,
        revoke: bool,
    },
    /// Deleted, and made again under its name.
    Recreate {
        account: u8,
    },
    WatchAccounts {
        events: u8,
    },
    /// Trouble, or none, and for how long before anything else happens.
    Sts {
        trouble: u8,
        seconds: u16,
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
    /// A pod asks: on a new connection or its last one, under its own address or another.
    Ask {
        pod: u8,
        kept: bool,
        under: Option<u8>,
    },
    /// Everything is shown, and all trouble is over for long enough: now nobody who has a role is refused.
    Calm,
}

impl Event {
    pub(crate) fn random(random: &mut fastrand::Rng) -> Self {
        let pod = random.u8(..);
        let account = random.u8(..ACCOUNTS);
        let address = random.u8(..ADDRESSES);
        match random.u8(..40) {
            0..=3 => Self::Add {
                account,
                address: (random.u8(..4) > 0).then_some(address),
                host: random.u8(..12) == 0,
            },
            4..=7 => Self::Reuse { account, address, fate: random.u8(..3) },
            8 => Self::Move { pod, address: random.bool().then_some(address) },
            9 => Self::Terminate { pod },
            10 => Self::Finish { pod },
            11 => Self::Delete { pod },
            12..=16 => Self::WatchPods { events: random.u8(1..6) },
            17 => Self::Relist,
            18..=20 => Self::Annotate {
                account,
                role: (random.u8(..6) > 0).then(|| random.u8(..ROLES)),
                second: random.u8(..3) == 0,
                longer: random.bool(),
                policy: random.bool(),
                revoke: random.u8(..4) == 0,
            },
            21 => Self::Recreate { account },
            22..=24 => Self::WatchAccounts { events: random.u8(1..4) },
            25 => Self::Sts { trouble: random.u8(..5), seconds: [0, 0, 4000][random.usize(..3)] },
            26 => Self::Kube { away: random.bool() },
            27 => Self::Slow { kube: random.u8(..8), sts: random.u8(..8) },
            28..=30 => Self::Pass { seconds: [0, 1, 10, 100, 1000, 3000][random.usize(..6)] },
            31..=38 => {
                Self::Ask { pod, kept: random.bool(), under: (random.u8(..4) == 0).then_some(address) }
            }
            _ => Self::Calm,
        }
    }
}
