//! The credentials that the emulator has issued and still honours, in memory and bounded.

use std::collections::{HashMap, VecDeque};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};
use secrecy::{ExposeSecret as _, SecretString};

use super::arn::RoleArn;
use super::params::Tag;

/// More live sessions than this and the oldest is forgotten: anybody with a valid token can ask for another.
const MAX_SESSIONS: usize = 20_000;

/// A role session, as the keys that were issued for it prove it.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub role: RoleArn,
    pub name: String,
    pub source_identity: Option<String>,
    pub tags: Vec<Tag>,
    pub expires: Timestamp,
    pub secret: SecretString,
    /// A MAC of the session token, under a key of this process: the token itself is not kept, and comparing
    /// MACs takes the same time for every wrong guess.
    token_mac: Vec<u8>,
}

/// What STS hands out.
pub(crate) struct Credentials {
    pub access_key_id: String,
    pub secret_access_key: SecretString,
    pub session_token: SecretString,
    pub expires: Timestamp,
}

pub(crate) struct Sessions {
    random: SystemRandom,
    mac_key: hmac::Key,
    by_key: HashMap<String, Session>,
    in_order: VecDeque<String>,
}

impl Sessions {
    pub(crate) fn new() -> Self {
        let random = SystemRandom::new();
        let mac_key =
            hmac::Key::generate(hmac::HMAC_SHA256, &random).expect("the kernel gives random numbers");
        Self { random, mac_key, by_key: HashMap::new(), in_order: VecDeque::new() }
    }

    /// New credentials for a session of `role`.
    pub(crate) fn issue(
        &mut self,
        role: &RoleArn,
        name: &str,
        source_identity: Option<String>,
        tags: Vec<Tag>,
        now: Timestamp,
        expires: Timestamp,
    ) -> Credentials {
        const KEY_LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        let tail: String =
            self.random::<16>().map(|b| KEY_LETTERS[usize::from(b & 31)] as char).iter().collect();
        let access_key_id = format!("ASIA{tail}");
        let secret = SecretString::from(STANDARD.encode(self.random::<30>()));
        // AWS's tokens start alike, have a few hundred characters, and are nobody's business to read.
        let token = SecretString::from(format!("IQoJb3JpZ2luX2Vj{}", STANDARD.encode(self.random::<240>())));
        let token_mac = hmac::sign(&self.mac_key, token.expose_secret().as_bytes()).as_ref().to_vec();
        self.forget(now);
        self.in_order.push_back(access_key_id.clone());
        let session = Session {
            role: role.clone(),
            name: name.to_owned(),
            source_identity,
            tags,
            expires,
            secret: secret.clone(),
            token_mac,
        };
        self.by_key.insert(access_key_id.clone(), session);
        Credentials { access_key_id, secret_access_key: secret, session_token: token, expires }
    }

    /// The session of an access key, expired ones included as long as they are remembered.
    pub(crate) fn find(&self, access_key_id: &str) -> Option<&Session> {
        self.by_key.get(access_key_id)
    }

    /// Is `token` the one that was issued with `session`?
    pub(crate) fn token_matches(&self, session: &Session, token: &SecretString) -> bool {
        hmac::verify(&self.mac_key, token.expose_secret().as_bytes(), &session.token_mac).is_ok()
    }

    fn forget(&mut self, now: Timestamp) {
        // An hour longer than they count, so that the answer is ExpiredToken and not a key nobody knows.
        let gone = |session: &Session| session.expires + jiff::SignedDuration::from_hours(1) < now;
        while let Some(oldest) = self.in_order.front() {
            let forgotten = self.by_key.get(oldest).is_none_or(gone);
            if !forgotten && self.in_order.len() < MAX_SESSIONS {
                break;
            }
            self.by_key.remove(oldest);
            self.in_order.pop_front();
        }
    }

    fn random<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.random.fill(&mut bytes).expect("the kernel gives random numbers");
        bytes
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    fn role() -> RoleArn {
        RoleArn::parse("arn:aws:iam::111122223333:role/web").unwrap()
    }

    #[test]
    fn a_token_fits_its_own_session_only() {
        let (mut sessions, now) = (Sessions::new(), Timestamp::UNIX_EPOCH);
        let [a, b] = ["a", "b"].map(|name| sessions.issue(&role(), name, None, Vec::new(), now, now));
        let session = sessions.find(&a.access_key_id).unwrap();
        assert!(sessions.token_matches(session, &a.session_token));
        assert!(!sessions.token_matches(session, &b.session_token));
    }

    #[test]
    fn sessions_are_bounded_and_the_oldest_goes_first() {
        let (mut sessions, now) = (Sessions::new(), Timestamp::UNIX_EPOCH);
        let expires = now + SignedDuration::from_hours(1);
        let first = sessions.issue(&role(), "first", None, Vec::new(), now, expires);
        let second = sessions.issue(&role(), "second", None, Vec::new(), now, expires);
        for _ in 0..MAX_SESSIONS - 1 {
            sessions.issue(&role(), "more", None, Vec::new(), now, expires);
        }
        assert!(sessions.find(&first.access_key_id).is_none());
        assert!(sessions.find(&second.access_key_id).is_some());
        assert_eq!(sessions.by_key.len(), MAX_SESSIONS);
    }

    #[test]
    fn the_expired_are_forgotten_after_a_while() {
        let (mut sessions, now) = (Sessions::new(), Timestamp::UNIX_EPOCH);
        let old = sessions.issue(&role(), "old", None, Vec::new(), now, now);
        sessions.issue(&role(), "soon", None, Vec::new(), now + SignedDuration::from_mins(59), now);
        assert!(sessions.find(&old.access_key_id).is_some());
        sessions.issue(&role(), "late", None, Vec::new(), now + SignedDuration::from_mins(61), now);
        assert!(sessions.find(&old.access_key_id).is_none());
    }
}
