//! IMDSv2's session tokens: signed, not stored, so that they cost no memory, outlive the agent, and are good for one caller alone.
//!
//! A token grants nothing: who asks is proved anew for each request. It shows that the asker can send a PUT and set a header, which
//! a forged request of a server rarely can, and it must be the asker's own.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jiff::Timestamp;
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use secrecy::{ExposeSecret, ExposeSecretMut, SecretBox};

use crate::identity::evidence::Known;

/// How long a token may live, in seconds.
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html>
pub const TTL_SECONDS: std::ops::RangeInclusive<u64> = 1..=21_600;
/// The key's file, beside the agent's local socket: as `rolecall net remove` knows it.
pub const KEY_FILE: &str = "imds.key";
const KEY_BYTES: usize = 32;
const MAC_BYTES: usize = 32;
const EXPIRY_BYTES: usize = size_of::<u64>();
/// What is signed begins with it: the key signs nothing else, and a later format would have another.
const PURPOSE: &[u8] = b"rolecall instance metadata token 1\0";

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory is not there, or not ours.
    #[error("the key of instance metadata's tokens, {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Somebody else could know it, or it was cut short.
    #[error(
        "the key of instance metadata's tokens, {path}, is not a file of {KEY_BYTES} bytes that is ours alone: remove it"
    )]
    NotOurs {
        /// The file.
        path: PathBuf,
    },
}

/// The key of one node's tokens. No `Debug`: it is a secret.
pub struct Key(hmac::Key);

impl Key {
    /// The key in `directory`, which is made there if it is not: the agents of one node, one after the other, share it, and so do
    /// two that start at once. Nobody but our user and root may enter that directory.
    ///
    /// # Errors
    /// [`Error`]: it can neither be read nor made, or others may have read or written it.
    pub fn load_or_make(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(KEY_FILE);
        let failed = |source| Error::File { path: path.clone(), source };
        match load(&path) {
            Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            loaded => return loaded,
        }
        let (draft, mut file) = draft(directory).map_err(failed)?;
        let mut bytes = SecretBox::new(Box::new([0_u8; KEY_BYTES]));
        let written = SystemRandom::new()
            .fill(bytes.expose_secret_mut())
            .map_err(|_| io::Error::other("the kernel gives no random numbers"))
            .and_then(|()| file.write_all(bytes.expose_secret()))
            // Under its name it is whole, and whoever comes second takes the first one's.
            .and_then(|()| match fs::hard_link(&draft, &path) {
                Err(err) if err.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                linked => linked,
            });
        let _ = fs::remove_file(&draft);
        written.map_err(failed)?;
        load(&path)
    }

    /// A token for `holder` that lives for `ttl` from `now`.
    pub fn mint(&self, holder: &Known, ttl: Duration, now: Timestamp) -> String {
        let expires = seconds(now).saturating_add(ttl.as_secs()).to_be_bytes();
        let mac = hmac::sign(&self.0, &signed(holder, expires));
        BASE64_URL_SAFE_NO_PAD.encode([&expires[..], mac.as_ref()].concat())
    }

    /// Is `token` one of this node's for one of `holders`, and alive?
    pub fn accepts(&self, token: &[u8], holders: &[Known], now: Timestamp) -> bool {
        let Ok(token) = BASE64_URL_SAFE_NO_PAD.decode(token) else { return false };
        let Some((expires, mac)) = token.split_first_chunk::<EXPIRY_BYTES>() else { return false };
        let left = u64::from_be_bytes(*expires).saturating_sub(seconds(now));
        // Longer than any can live: the clock was set back, and would otherwise lengthen it by as much.
        mac.len() == MAC_BYTES
            && TTL_SECONDS.contains(&left)
            && holders.iter().any(|holder| hmac::verify(&self.0, &signed(holder, *expires), mac).is_ok())
    }

    /// A key that no other has.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    pub fn random() -> Self {
        let mut bytes = [0; KEY_BYTES];
        SystemRandom::new().fill(&mut bytes).expect("the kernel gives random numbers");
        Self(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
    }
}

fn load(path: &Path) -> Result<Key, Error> {
    let failed = |source| Error::File { path: path.to_owned(), source };
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
        .open(path)
        .map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    let ours = found.is_file()
        && found.uid() == nix::unistd::geteuid().as_raw()
        && found.mode() & 0o077 == 0
        && found.len() == KEY_BYTES as u64;
    if !ours {
        return Err(Error::NotOurs { path: path.to_owned() });
    }
    let mut bytes = SecretBox::new(Box::new([0_u8; KEY_BYTES]));
    file.read_exact(bytes.expose_secret_mut()).map_err(failed)?;
    Ok(Key(hmac::Key::new(hmac::HMAC_SHA256, bytes.expose_secret())))
}

/// A file of our own, to be written before it gets its name.
fn draft(directory: &Path) -> io::Result<(PathBuf, File)> {
    let path = directory.join(format!("{KEY_FILE}.{:016x}", fastrand::u64(..)));
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    Ok((path, file))
}

fn signed(holder: &Known, expires: [u8; EXPIRY_BYTES]) -> Vec<u8> {
    // The kind is one byte before the name, so that no UID reads as an address.
    let (kind, name) = match holder {
        Known::Pod(uid) => (b'p', uid.to_string()),
        Known::Address(address) => (b'a', address.to_string()),
    };
    [PURPOSE, &expires, &[kind], name.as_bytes()].concat()
}

fn seconds(moment: Timestamp) -> u64 {
    moment.as_second().try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::identity::pods::PodUid;

    const HOUR: Duration = Duration::from_secs(3600);

    fn pod(uid: &str) -> Known {
        Known::Pod(PodUid::new(uid))
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    #[test]
    fn a_token_is_its_holders_alone_until_it_expires() {
        let key = Key::random();
        let token = key.mint(&pod("a"), HOUR, at(0));
        let good = |holder: Known, now| key.accepts(token.as_bytes(), &[holder], now);
        assert!(good(pod("a"), at(0)) && good(pod("a"), at(3599)));
        assert!(!good(pod("a"), at(3600)), "expired");
        assert!(!good(pod("b"), at(0)) && !good(Known::Address("10.0.0.7".parse().unwrap()), at(0)));
        assert!(
            key.accepts(token.as_bytes(), &[pod("b"), pod("a")], at(0)),
            "any of those that the caller is"
        );
        assert!(!Key::random().accepts(token.as_bytes(), &[pod("a")], at(0)), "another node's");
    }

    #[test]
    fn no_uid_reads_as_an_address() {
        let key = Key::random();
        let address = Known::Address("10.0.0.7".parse().unwrap());
        let token = key.mint(&pod("10.0.0.7"), HOUR, at(0));
        assert!(!key.accepts(token.as_bytes(), &[address], at(0)));
    }

    #[test]
    fn a_clock_that_is_set_back_lengthens_no_life() {
        let key = Key::random();
        let token = key.mint(&pod("a"), Duration::from_secs(*TTL_SECONDS.end()), at(0));
        assert!(key.accepts(token.as_bytes(), &[pod("a")], at(0)));
        assert!(!key.accepts(token.as_bytes(), &[pod("a")], at(-1)));
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        let key = Key::random();
        let token = key.mint(&pod("a"), HOUR, at(0));
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(&token).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let changed = BASE64_URL_SAFE_NO_PAD.encode(changed);
            assert!(!key.accepts(changed.as_bytes(), &[pod("a")], at(0)), "bit {bit}");
        }
        for cut in 0..token.len() {
            assert!(!key.accepts(&token.as_bytes()[..cut], &[pod("a")], at(0)), "{cut} characters");
        }
    }

    #[test]
    fn the_next_agent_of_the_node_has_the_same_key_and_another_nodes_has_not() {
        let (node, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let key = |node: &tempfile::TempDir| Key::load_or_make(node.path()).unwrap();
        let token = key(&node).mint(&pod("a"), HOUR, at(0));
        assert!(key(&node).accepts(token.as_bytes(), &[pod("a")], at(0)));
        assert!(!key(&other).accepts(token.as_bytes(), &[pod("a")], at(0)));
        let files: Vec<_> =
            fs::read_dir(node.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
        assert_eq!(files, [KEY_FILE], "no draft is left");
        let mode = fs::metadata(node.path().join(KEY_FILE)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn agents_that_start_at_once_agree() {
        let node = tempfile::tempdir().unwrap();
        let keys: Vec<Key> = std::thread::scope(|scope| {
            let start = |_| scope.spawn(|| Key::load_or_make(node.path()).unwrap());
            let started: Vec<_> = (0..8).map(start).collect();
            started.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let token = keys[0].mint(&pod("a"), HOUR, at(0));
        assert!(keys.iter().all(|key| key.accepts(token.as_bytes(), &[pod("a")], at(0))));
    }

    #[test]
    fn a_key_that_others_may_know_is_not_used() {
        let node = tempfile::tempdir().unwrap();
        let path = node.path().join(KEY_FILE);
        let refused = |what: &str| {
            let found = Key::load_or_make(node.path());
            assert!(matches!(found, Err(Error::NotOurs { .. })), "{what}");
        };
        Key::load_or_make(node.path()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        refused("readable by the group");
        fs::remove_file(&path).unwrap();
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).unwrap();
        refused("empty");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        refused("a directory");
        fs::remove_dir(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert!(Key::load_or_make(node.path()).is_err(), "a link");
    }
}
