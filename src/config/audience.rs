//! The audience that tokens must not have by accident: the API server's own.
//!
//! A token with it is a ServiceAccount at the API server, and every token goes to STS. So no default and no annotation
//! may lead there: only `--allow-audience`, and only to an STS that nobody on the way can listen to.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use kube::config::AuthInfo;
use secrecy::ExposeSecret;
use serde::Deserialize;

use super::{Config, Mistakes};

/// Beginnings of what API servers are set up with: by kubeadm, k3s, Talos and others, and by kOps. The token may have another.
const WELL_KNOWN: [&str; 2] = ["kubernetes.default", "kubernetes.svc.default"];

impl Config {
    /// Refuses audiences of the API server, unless they are meant. `api` is how the agent logs in there: its own token
    /// shows what the API server takes for itself.
    ///
    /// # Errors
    /// What would have to be listed, or sent elsewhere.
    pub fn check_audiences(&self, api: &AuthInfo) -> Result<(), Mistakes> {
        if self.sts_mode.base().is_some() {
            return Ok(()); // There are no tokens.
        }
        let own = audiences_of_token(api);
        let mut mistakes = Vec::new();
        for audience in &self.plan.allowed_audiences {
            let name = audience.strip_prefix("https://").unwrap_or(audience);
            if !own.contains(audience) && !WELL_KNOWN.iter().any(|known| name.starts_with(known)) {
                continue;
            }
            if !self.allow_audience.contains(audience) {
                mistakes.push(format!(
                    "--audience: {audience:?} is the API server's own audience: whoever holds such a token is the pod's \
                     ServiceAccount there. List it in --allow-audience if that is meant"
                ));
            } else if let Some(url) = self.sts.url.as_deref().filter(|url| !confidential(url)) {
                mistakes.push(format!(
                    "--allow-audience: {audience:?} is the API server's own audience, and its tokens would go to {url}: \
                     that must be https or on this machine"
                ));
            } else {
                tracing::warn!(audience, "tokens that STS is shown are good at the API server too");
            }
        }
        if mistakes.is_empty() { Ok(()) } else { Err(Mistakes(mistakes)) }
    }
}

/// The API server gives a token that is asked for without an audience, as the agent's own was, all of its own.
fn audiences_of_token(api: &AuthInfo) -> Vec<String> {
    #[derive(Deserialize)]
    struct Claims {
        aud: Audiences,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Audiences {
        One(String),
        Many(Vec<String>),
    }
    let token = match (&api.token, &api.token_file) {
        (Some(token), _) => Some(token.expose_secret().to_owned()),
        (None, Some(file)) => std::fs::read_to_string(file).ok(),
        // A client certificate, or a program: it has none to show.
        (None, None) => None,
    };
    let claims = token
        .as_deref()
        .and_then(|token| token.split('.').nth(1))
        .and_then(|payload| BASE64_URL_SAFE_NO_PAD.decode(payload).ok())
        .and_then(|payload| serde_json::from_slice::<Claims>(&payload).ok());
    match claims.map(|claims| claims.aud) {
        None => Vec::new(),
        Some(Audiences::One(audience)) => vec![audience],
        Some(Audiences::Many(audiences)) => audiences,
    }
}

/// Does nobody between here and there see what is sent?
fn confidential(url: &str) -> bool {
    let Ok(url) = url.parse::<http::Uri>() else { return false };
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    url.scheme_str() == Some("https")
        || host == "localhost"
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::super::Args;
    use super::*;

    const OURS: &str = "https://api.cluster.example";

    /// The agent's own token, as the API server makes it.
    fn login() -> AuthInfo {
        let payload =
            BASE64_URL_SAFE_NO_PAD.encode(format!("{{\"aud\":[{OURS:?},\"k3s\"],\"sub\":\"agent\"}}"));
        AuthInfo { token: Some(format!("e30.{payload}.sig").into()), ..AuthInfo::default() }
    }

    fn check(login: &AuthInfo, args: Args) -> Result<(), String> {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            args: Args,
        }
        let Cli { args: defaults } =
            <Cli as clap::Parser>::try_parse_from(["rolecall", "--node-name", "n"]).unwrap();
        let audience = if args.audience.is_empty() { defaults.audience.clone() } else { args.audience };
        let Args { allow_audience, sts_endpoint_url, .. } = args;
        let args = Args { audience, allow_audience, sts_endpoint_url, ..defaults };
        Config::from_args(args, |_| None)
            .unwrap()
            .check_audiences(login)
            .map_err(|mistakes| mistakes.to_string())
    }

    fn allowing(audiences: &[&str], sts: Option<&str>) -> Args {
        let mut allow_audience: Vec<String> = audiences.iter().map(|&audience| audience.to_owned()).collect();
        allow_audience.push(super::super::AUDIENCE.to_owned());
        Args { allow_audience, sts_endpoint_url: sts.map(str::to_owned), ..Args::default() }
    }

    #[test]
    fn stss_audience_goes_anywhere() {
        check(&login(), Args::default()).unwrap();
        check(&login(), allowing(&["minio"], Some("http://minio.example.com:9000"))).unwrap();
    }

    #[test]
    fn the_api_servers_audience_goes_to_an_sts_over_https_or_on_this_machine_alone() {
        for audience in [OURS, "k3s", "https://kubernetes.default.svc", "kubernetes.svc.default"] {
            for sts in [
                None,
                Some("https://sts.example.com"),
                Some("http://127.0.0.1:4566"),
                Some("http://[::1]:4566"),
            ] {
                check(&login(), allowing(&[audience], sts))
                    .unwrap_or_else(|why| panic!("{audience} {sts:?}: {why}"));
            }
            for sts in ["http://sts.example.com", "http://169.254.170.9", "http://127.0.0.1.example.com"] {
                let why = check(&login(), allowing(&[audience], Some(sts))).unwrap_err();
                assert!(why.starts_with("error: --allow-audience:") && why.contains(sts), "{why}");
            }
        }
    }

    #[test]
    fn the_api_servers_audience_is_no_default_even_over_https() {
        for audience in [OURS, "https://kubernetes.default.svc.cluster.local"] {
            let why = check(&login(), Args { audience: audience.into(), ..Args::default() }).unwrap_err();
            assert!(why.starts_with("error: --audience:") && why.contains("--allow-audience"), "{why}");
        }
    }

    #[test]
    fn an_api_server_whose_audience_is_stss_must_be_meant() {
        let payload = BASE64_URL_SAFE_NO_PAD.encode(r#"{"aud":"sts.amazonaws.com"}"#);
        let login = AuthInfo { token: Some(format!("e30.{payload}.sig").into()), ..AuthInfo::default() };
        assert!(check(&login, Args::default()).unwrap_err().contains("sts.amazonaws.com"));
        check(&login, allowing(&[], None)).unwrap();
    }

    #[test]
    fn a_login_without_a_token_has_the_well_known_names_alone() {
        let none = AuthInfo::default();
        check(&none, allowing(&[OURS], Some("http://sts.example.com"))).unwrap();
        check(&none, allowing(&["https://kubernetes.default.svc"], Some("http://sts.example.com")))
            .unwrap_err();
        let opaque = AuthInfo { token: Some("not-a-jwt".to_owned().into()), ..AuthInfo::default() };
        check(&opaque, Args::default()).unwrap();
    }
}
