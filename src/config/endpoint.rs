//! Where STS is and how to get there: flags, AWS's own variables, and the proxy variables that its SDKs know.

use std::path::PathBuf;

use crate::sts::connector::{CaBundle, Proxy};
use crate::sts::endpoint::Settings;

/// The flags as they were written.
pub(super) struct Flags {
    pub(super) url: Option<String>,
    pub(super) ca_bundle: Option<PathBuf>,
    pub(super) fips: bool,
    pub(super) dual_stack: bool,
}

/// Checks `flags`; `variable` looks variables of the environment up that are not empty.
pub(super) fn settings(
    flags: Flags,
    variable: impl Fn(&str) -> Option<String>,
    mistakes: &mut Vec<String>,
) -> Settings {
    let Flags { url, ca_bundle, fips, dual_stack } = flags;
    let url = url.or_else(|| variable("AWS_ENDPOINT_URL_STS"));
    if let Some(why) = url.as_deref().and_then(wrong_url) {
        mistakes.push(format!("--sts-endpoint-url: {why}"));
    }
    let ca_bundle = ca_bundle.or_else(|| variable("AWS_CA_BUNDLE").map(PathBuf::from));
    let ca_bundle = ca_bundle.and_then(|path| {
        CaBundle::read(path).map_err(|why| mistakes.push(format!("--sts-ca-bundle: {why}"))).ok()
    });
    let mut switch = |flag: bool, name: &str| {
        flag || match variable(name).map(|value| value.to_ascii_lowercase()).as_deref() {
            Some("true") => true,
            None | Some("false") => false,
            Some(other) => {
                mistakes.push(format!("{name}: {other:?} is neither true nor false"));
                false
            }
        }
    };
    let (fips, dual_stack) =
        (switch(fips, "AWS_USE_FIPS_ENDPOINT"), switch(dual_stack, "AWS_USE_DUALSTACK_ENDPOINT"));
    for (flag, set) in [("use-fips-endpoint", fips), ("use-dualstack-endpoint", dual_stack)] {
        if let Some(url) = url.as_deref().filter(|_| set) {
            mistakes.push(format!(
                "--{flag}: chooses among AWS's names, and --sts-endpoint-url is {url}: name such an endpoint there, or drop one of the two"
            ));
        }
    }
    let proxy = proxy(url.as_deref().is_some_and(|url| url.starts_with("http:")), &variable, mistakes);
    Settings { url, fips, dual_stack, ca_bundle, proxy }
}

/// Why this is no STS's URL, if it is none, as a phrase for the message.
pub(crate) fn wrong_url(url: &str) -> Option<String> {
    // The configuration is logged, and this call needs none. Before anything else is said of it.
    if url.contains('@') {
        return Some("must not hold a user or password".into());
    }
    let parsed = super::url::parse(url).filter(|url| {
        matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some_and(|host| !host.is_empty())
    });
    match parsed {
        None => Some(format!("{url:?} is not http(s)://HOST[:PORT][/PATH]")),
        // The SDK puts its path behind it.
        Some(parsed) if parsed.query().is_some() => Some(format!("{url:?} must end with its path")),
        Some(_) => None,
    }
}

/// By the scheme of what is asked, as every client has it. The capital spelling wins.
fn proxy(
    plain: bool,
    variable: impl Fn(&str) -> Option<String>,
    mistakes: &mut Vec<String>,
) -> Option<Proxy> {
    let either = |name: &'static str| {
        variable(name).map(|value| (name.to_owned(), value)).or_else(|| {
            let name = name.to_ascii_lowercase();
            variable(&name).map(|value| (name, value))
        })
    };
    let (name, url) = either(if plain { "HTTP_PROXY" } else { "HTTPS_PROXY" })?;
    let no_proxy = either("NO_PROXY").map(|(_, value)| value).unwrap_or_default();
    Proxy::parse(&url, &no_proxy).map_err(|why| mistakes.push(format!("{name}: {why}"))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(url: Option<&str>, fips: bool, variables: &[(&str, &str)]) -> (Settings, Vec<String>) {
        let mut mistakes = Vec::new();
        let variable =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        let flags = Flags { url: url.map(str::to_owned), ca_bundle: None, fips, dual_stack: false };
        let settings = settings(flags, variable, &mut mistakes);
        (settings, mistakes)
    }

    fn good(url: Option<&str>, variables: &[(&str, &str)]) -> Settings {
        let (settings, mistakes) = checked(url, false, variables);
        assert_eq!(mistakes, [""; 0]);
        settings
    }

    #[test]
    fn an_endpoint_has_a_path_a_port_or_an_ipv6_literal() {
        for url in [
            "http://[::1]:4566",
            "https://gw.example.com/sts/",
            "https://vpce-0a-1b.sts.eu-west-1.vpce.amazonaws.com",
            "http://minio.minio.svc:9000",
        ] {
            assert_eq!(good(Some(url), &[]).url.as_deref(), Some(url));
            assert_eq!(good(None, &[("AWS_ENDPOINT_URL_STS", url)]).url.as_deref(), Some(url));
        }
        for url in [
            "sts.example.com",
            "ftp://sts.example.com",
            "https://sts.example.com:99999",
            "https://sts.example.com#sts",
            "https://",
            "https://me:pw@sts.example.com",
            "http://a/?b=c",
        ] {
            let (_, mistakes) = checked(Some(url), false, &[]);
            assert!(
                mistakes.len() == 1 && mistakes[0].starts_with("--sts-endpoint-url: "),
                "{url}: {mistakes:?}"
            );
            assert!(!mistakes[0].contains("me:pw"), "{mistakes:?}");
        }
    }

    #[test]
    fn awss_own_switches_count_and_nothing_else_does() {
        let settings =
            good(None, &[("AWS_USE_FIPS_ENDPOINT", "true"), ("AWS_USE_DUALSTACK_ENDPOINT", "TRUE")]);
        assert!(settings.fips && settings.dual_stack);
        let settings = good(None, &[("AWS_USE_FIPS_ENDPOINT", "false")]);
        assert!(!settings.fips && !settings.dual_stack);
        let (_, mistakes) = checked(None, false, &[("AWS_USE_FIPS_ENDPOINT", "yes")]);
        assert_eq!(mistakes, ["AWS_USE_FIPS_ENDPOINT: \"yes\" is neither true nor false"]);
    }

    #[test]
    fn fips_and_dual_stack_are_names_of_awss_own_endpoints_alone() {
        let own = Some("https://sts.example.com");
        let (_, mistakes) = checked(own, true, &[("AWS_USE_DUALSTACK_ENDPOINT", "true")]);
        assert_eq!(mistakes.len(), 2, "{mistakes:?}");
        assert!(
            mistakes[0].starts_with("--use-fips-endpoint:")
                && mistakes[0].contains("https://sts.example.com")
        );
        assert!(mistakes[1].starts_with("--use-dualstack-endpoint:"), "{mistakes:?}");
    }

    #[test]
    fn the_proxy_is_the_one_for_the_endpoints_scheme() {
        let both =
            [("HTTPS_PROXY", "http://secure:3128"), ("http_proxy", "plain:3128"), ("NO_PROXY", ".internal")];
        let shown = |url| format!("{:?}", good(url, &both).proxy.unwrap());
        assert_eq!(shown(None), "http://secure:3128 no-proxy=\".internal\"");
        assert_eq!(shown(Some("https://sts.example.com")), "http://secure:3128 no-proxy=\".internal\"");
        assert_eq!(shown(Some("http://sts.example.com")), "http://plain:3128 no-proxy=\".internal\"");
        assert!(good(Some("http://sts.example.com"), &both[..1]).proxy.is_none());
        let (_, mistakes) = checked(None, false, &[("https_proxy", "socks5://me:s3cr3t@proxy")]);
        assert!(mistakes.len() == 1 && mistakes[0].starts_with("https_proxy: must be http"), "{mistakes:?}");
        let (_, mistakes) = checked(None, false, &[("HTTPS_PROXY", "http://me:s3cr3t@proxy:port")]);
        assert!(mistakes.len() == 1 && mistakes[0].starts_with("HTTPS_PROXY: is not a URL"), "{mistakes:?}");
        assert!(!mistakes[0].contains("s3cr3t"), "{mistakes:?}");
    }
}
