//! `--token-source=issuer`: where the issuer is, and what may not be combined with it.

use std::path::PathBuf;

use crate::oidc::fetch::trust_only;
use crate::token::issued::Door;

/// The flags as they were written.
pub(super) struct Flags {
    pub(super) url: Option<String>,
    pub(super) ca_bundle: Option<PathBuf>,
    pub(super) token_file: PathBuf,
    pub(super) audience: String,
}

/// The door to the issuer, if tokens come from there; `others` are the audiences of tokens for somebody else.
pub(super) fn door(
    flags: Flags,
    tokens_come_from_there: bool,
    others: &[String],
    mut wrong: impl FnMut(&str, String),
) -> Option<Door> {
    let Flags { url, ca_bundle, token_file, audience } = flags;
    if !tokens_come_from_there {
        for (flag, given) in [("issuer-url", url.is_some()), ("issuer-ca-bundle", ca_bundle.is_some())] {
            if given {
                wrong(flag, "is for --token-source=issuer, and tokens come from elsewhere".into());
            }
        }
        return None;
    }
    let Some(url) = url.filter(|url| !url.is_empty()) else {
        wrong(
            "issuer-url",
            "is required with --token-source=issuer, such as https://rolecall-issuer.rolecall.svc".into(),
        );
        return None;
    };
    let parsed = super::url::parse(&url).filter(|url| {
        let plain = url.authority().is_some_and(|host| !host.as_str().contains('@'));
        plain && url.scheme_str() == Some("https") && url.query().is_none()
    });
    if parsed.is_none() {
        // Both tokens go there.
        // It may hold a password.
        let shown = if url.contains('@') { String::new() } else { format!("{url:?} ") };
        wrong("issuer-url", format!("{shown}is not https://HOST[:PORT][/PATH], without a user"));
    }
    if let Some(Err(err)) = ca_bundle.as_deref().map(trust_only) {
        wrong("issuer-ca-bundle", err.to_string());
    }
    // Whoever is shown such a token could show it to the issuer, or the other way round.
    if others.contains(&audience) || audience.is_empty() {
        let why = format!(
            "{audience:?} must be the issuer's alone: it is empty, one of STS's or one of --authorization-audience"
        );
        wrong("issuer-audience", why);
    }
    Some(Door { url, ca_bundle, token_file, audience: audience.into() })
}

#[cfg(test)]
mod tests {
    use super::super::tests::args;
    use super::super::{Args, Config, Mistakes};
    use crate::identity::authorization::TokenSource;
    use crate::issuer::AUDIENCE;

    fn with_issuer() -> Args {
        let issuer_url = Some("https://rolecall-issuer.rolecall.svc".into());
        Args { token_source: "issuer".into(), issuer_url, ..args() }
    }

    fn mistake(args: Args) -> String {
        let Mistakes(mistakes) = Config::from_args(args, |_| None).unwrap_err();
        assert_eq!(mistakes.len(), 1, "{mistakes:?}");
        mistakes.into_iter().next().unwrap()
    }

    #[test]
    fn an_issuer_needs_its_url_and_nothing_else() {
        let config = Config::from_args(with_issuer(), |_| None).unwrap();
        let TokenSource::Issuer(door) = config.authorization.tokens else { panic!("{config}") };
        assert_eq!(&*door.audience, AUDIENCE);
        let without = Args { issuer_url: None, ..with_issuer() };
        assert!(mistake(without).starts_with("--issuer-url: is required"));
        let others = Config::from_args(args(), |_| None).unwrap();
        assert_eq!(others.authorization.tokens, TokenSource::Kubernetes);
    }

    #[test]
    fn tokens_go_to_an_issuer_over_https_alone() {
        for url in ["http://issuer", "issuer:443", "https://user@issuer", "https://issuer?x"] {
            let args = Args { issuer_url: Some(url.into()), ..with_issuer() };
            assert!(mistake(args).starts_with("--issuer-url:"), "{url}");
        }
    }

    #[test]
    fn flags_of_an_issuer_that_nobody_asks_are_a_mistake() {
        for token_source in ["kubernetes", "caller"] {
            let args = Args { token_source: token_source.into(), ..with_issuer() };
            assert!(mistake(args).contains("--token-source=issuer"));
        }
    }

    #[test]
    fn the_issuers_audience_is_nobody_elses() {
        for audience in ["", "sts.amazonaws.com", "rolecall"] {
            let args = Args { issuer_audience: audience.into(), ..with_issuer() };
            assert!(mistake(args).starts_with("--issuer-audience:"), "{audience}");
        }
    }

    #[test]
    fn a_ca_bundle_must_be_one() {
        let bundle = Some("Cargo.toml".into());
        let args = Args { issuer_ca_bundle: bundle, ..with_issuer() };
        assert!(mistake(args).contains("holds no certificate"));
    }
}
