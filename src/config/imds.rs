//! Instance metadata: where it is answered, and what it excludes. Who asks it sends no Authorization, so nothing that is proved there goes
//! with it.

use std::net::SocketAddr;

use super::Identity;
use crate::identity::authorization::{Authorization, Required, TokenSource};

/// Where `rolecall net install --imds-listen` sends pods' requests to: addresses of ours, at a port of its own. An IPv6-only pod needs the
/// second.
pub const LISTEN: [&str; 2] = ["169.254.170.2:9904", "[fd00:ec2::23]:9904"];

/// `--imds-listen`, `--imds-v1` and `--imds-passthrough-namespace`, as understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imds {
    /// `--imds-listen`
    pub listen: Vec<SocketAddr>,
    /// `--imds-v1`
    pub v1: bool,
    /// `--imds-passthrough-namespace`
    pub passthrough: Vec<String>,
}

/// The three flags as they were written.
#[derive(Debug, Default)]
pub(super) struct Flags {
    pub(super) listen: Vec<String>,
    pub(super) v1: bool,
    pub(super) passthrough: Vec<String>,
}

/// Checks the flags beside two others; none without a listener. `wrong` is told of every mistake, by flag.
pub(super) fn check(
    flags: Flags,
    identity: Identity,
    authorization: &Authorization,
    mut wrong: impl FnMut(&str, String),
) -> Option<Imds> {
    let Flags { listen, v1, passthrough } = flags;
    if listen.is_empty() {
        for (flag, set) in [("imds-v1", v1), ("imds-passthrough-namespace", !passthrough.is_empty())] {
            if set {
                wrong(flag, format!("of what? --imds-listen is missing, such as {}", LISTEN[0]));
            }
        }
        return None;
    }
    let mut addresses = Vec::new();
    for text in &listen {
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_unspecified() => {
                wrong("imds-listen", format!("{text:?} is every address of the node; name one"));
            }
            Ok(address) => addresses.push(address),
            Err(_) => wrong("imds-listen", format!("{text:?} is not ADDRESS:PORT, such as {}", LISTEN[0])),
        }
    }
    let required = match authorization.required {
        Required::Token | Required::Word(_) => Some("--require-authorization=token"),
        // A token of IMDSv2 is a header of the asker's choice, too. Version 1 has none.
        Required::Present if v1 => Some("--require-authorization=present beside --imds-v1"),
        Required::Present | Required::Off => None,
    };
    let shown = matches!(authorization.tokens, TokenSource::Caller).then_some("--token-source=caller");
    for excluded in required.into_iter().chain(shown) {
        wrong(
            "imds-listen",
            format!(
                "excludes {excluded}: who asks instance metadata sends no Authorization. Give such pods the variables instead"
            ),
        );
    }
    if !passthrough.is_empty() && identity == Identity::Ip {
        let why = "needs --identity=kernel: an address does not prove that it is a system pod, and what it would get is the node's own role";
        wrong("imds-passthrough-namespace", why.into());
    }
    for namespace in &passthrough {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if namespace.is_empty() || !namespace.bytes().all(plain) {
            let why = format!("{namespace:?} is not the name of a namespace; patterns are not taken");
            wrong("imds-passthrough-namespace", why);
        }
    }
    Some(Imds { listen: addresses, v1, passthrough })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a test changes.
    struct Set {
        flags: Flags,
        identity: Identity,
        authorization: Authorization,
    }

    fn checked(set: impl FnOnce(&mut Set)) -> Result<Option<Imds>, Vec<String>> {
        let flags = Flags { listen: vec![LISTEN[0].to_owned()], ..Flags::default() };
        let mut all = Set { flags, identity: Identity::Kernel, authorization: Authorization::default() };
        set(&mut all);
        let mut mistakes = Vec::new();
        let wrong = |flag: &str, why: String| mistakes.push(format!("--{flag}: {why}"));
        let imds = check(all.flags, all.identity, &all.authorization, wrong);
        if mistakes.is_empty() { Ok(imds) } else { Err(mistakes) }
    }

    fn refused(flag: &str, says: &str, set: impl FnOnce(&mut Set)) {
        let mistakes = checked(set).expect_err(says);
        assert!(mistakes[0].starts_with(&format!("--{flag}:")) && mistakes[0].contains(says), "{mistakes:?}");
    }

    #[test]
    fn instance_metadata_is_off_until_it_has_a_listener() {
        assert_eq!(checked(|set| set.flags.listen.clear()), Ok(None));
        refused("imds-v1", "--imds-listen is missing", |set| {
            set.flags = Flags { v1: true, ..Flags::default() };
        });
        refused("imds-passthrough-namespace", "--imds-listen is missing", |set| {
            set.flags = Flags { passthrough: vec!["kube-system".into()], ..Flags::default() };
        });
    }

    #[test]
    fn a_listener_has_an_address() {
        for text in ["0.0.0.0:9904", "[::]:9904", "9904", "169.254.170.2"] {
            refused("imds-listen", text, |set| set.flags.listen = vec![text.into()]);
        }
        let imds = checked(|set| set.flags.listen = LISTEN.map(str::to_owned).to_vec()).unwrap().unwrap();
        assert_eq!(imds.listen.len(), 2);
    }

    #[test]
    fn what_is_shown_in_authorization_excludes_it() {
        refused("imds-listen", "--token-source=caller", |set| {
            set.authorization.tokens = TokenSource::Caller;
        });
        refused("imds-listen", "--require-authorization=token", |set| {
            set.authorization.required = Required::Token;
        });
        refused("imds-listen", "beside --imds-v1", |set| {
            set.flags.v1 = true;
            set.authorization.required = Required::Present;
        });
        checked(|set| set.authorization.required = Required::Present).unwrap();
    }

    #[test]
    fn the_nodes_own_role_goes_to_nobody_whom_an_address_names() {
        refused("imds-passthrough-namespace", "--identity=kernel", |set| {
            set.flags.passthrough.push("kube-system".into());
            set.identity = Identity::Ip;
        });
        for pattern in ["*", "kube-*", ""] {
            refused("imds-passthrough-namespace", "is not the name", |set| {
                set.flags.passthrough.push(pattern.into());
            });
        }
        let imds = checked(|set| set.flags.passthrough.push("kube-system".into())).unwrap().unwrap();
        assert_eq!(imds.passthrough, ["kube-system"]);
    }
}
