//! Every flag and variable of the issuer; checked once, all mistakes reported together.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::config::{self, Kube, Mistakes};
use crate::identity::pods::ServiceAccountName;
use crate::oidc::documents::IssuerUrl;
use crate::role::tags::is_value;

/// The default audience of the tokens that agents show the issuer: nobody else takes it for his own.
pub const AUDIENCE: &str = "rolecall-issuer";

/// `rolecall issuer`: flags as they were written. Each has an environment variable `ROLECALL_<FLAG>`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// The issuer, exactly as IAM has it: https://HOST[/PATH], where STS finds the documents. Required.
    #[arg(long, env = "ROLECALL_ISSUER", value_name = "URL")]
    pub issuer: Option<String>,
    /// Folder with the keys: signing.pem signs, it and all other *.pem are published. Read again when it changes.
    #[arg(long, env = "ROLECALL_KEYS", value_name = "DIR", default_value = "/etc/rolecall/keys")]
    pub keys: PathBuf,
    /// Folder with the serving certificate, tls.crt and tls.key. Read again when it changes.
    #[arg(long, env = "ROLECALL_TLS", value_name = "DIR", default_value = "/etc/rolecall/tls")]
    pub tls: PathBuf,
    /// Where agents ask, and where the documents are; https.
    #[arg(long, env = "ROLECALL_LISTEN", value_name = "ADDRESS:PORT", default_value = "0.0.0.0:8443")]
    pub listen: String,
    /// Probes and metrics; http.
    #[arg(long, env = "ROLECALL_ADMIN_LISTEN", value_name = "ADDRESS:PORT", default_value = "0.0.0.0:9904")]
    pub admin_listen: String,
    /// Kubeconfig file [default: the pod's own ServiceAccount]
    #[arg(long, env = "ROLECALL_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Audience of the two tokens that an agent shows; never one of STS's.
    #[arg(long, env = "ROLECALL_AUDIENCE", default_value = AUDIENCE)]
    pub audience: String,
    /// The agents' ServiceAccount.
    #[arg(long, env = "ROLECALL_AGENT", value_name = "NAMESPACE/NAME", default_value = "rolecall/rolecall")]
    pub agent: String,
    /// The cluster's name, for the session tag eks-cluster-name and for source identities.
    #[arg(long, env = "ROLECALL_CLUSTER_NAME")]
    pub cluster_name: Option<String>,
    /// Audience that signed tokens may have. Repeatable.
    #[arg(long, env = "ROLECALL_ALLOW_AUDIENCE", value_delimiter = ',', default_value = config::AUDIENCE)]
    pub allow_audience: Vec<String>,
}

/// The configuration as understood.
#[derive(Clone, Debug)]
pub struct Config {
    pub(super) issuer: IssuerUrl,
    pub(super) keys: PathBuf,
    pub(super) tls: PathBuf,
    pub(super) listen: SocketAddr,
    pub(super) admin_listen: SocketAddr,
    pub(super) kube: Kube,
    pub(super) audience: String,
    pub(super) agent: ServiceAccountName,
    pub(super) cluster_name: String,
    pub(super) allow_audience: Vec<String>,
}

/// The effective configuration as one log line.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            issuer,
            keys,
            tls,
            listen,
            admin_listen,
            kube,
            audience,
            agent,
            cluster_name,
            allow_audience,
        } = self;
        write!(f, "issuer={} keys={} tls={} ", issuer.as_str(), keys.display(), tls.display())?;
        write!(f, "listen={listen} admin-listen={admin_listen} kube={kube:?} ")?;
        write!(
            f,
            "audience={audience} agent={agent} cluster-name={cluster_name:?} allow-audience={allow_audience:?}"
        )
    }
}

impl Config {
    /// Checks `args`.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn from_args(args: Args) -> Result<Self, Mistakes> {
        // Every field by name: a flag that nobody reads does not compile.
        let Args {
            issuer,
            keys,
            tls,
            listen,
            admin_listen,
            kubeconfig,
            audience,
            agent,
            cluster_name,
            allow_audience,
        } = args;
        let mut mistakes = Vec::new();
        let mut wrong = |flag: &str, why: String| mistakes.push(format!("--{flag}: {why}"));
        let issuer = match issuer.as_deref().map(IssuerUrl::parse) {
            Some(Ok(url)) => Some(url),
            Some(Err(why)) => {
                wrong("issuer", why);
                None
            }
            None => {
                wrong("issuer", "is required: the URL of IAM's OIDC provider".into());
                None
            }
        };
        let mut address = |flag: &str, text: &str| {
            let parsed = text.parse::<SocketAddr>();
            parsed.map_err(|_| wrong(flag, format!("{text:?} is not ADDRESS:PORT"))).ok()
        };
        let listen = address("listen", &listen);
        let admin_listen = address("admin-listen", &admin_listen);
        let plain = |part: &str| !part.is_empty() && !part.contains(['/', ':']);
        let agent = match agent.split_once('/') {
            Some((namespace, name)) if plain(namespace) && plain(name) => {
                Some(ServiceAccountName { namespace: namespace.into(), name: name.into() })
            }
            _ => {
                wrong("agent", format!("{agent:?} is not NAMESPACE/NAME of a ServiceAccount"));
                None
            }
        };
        if audience.is_empty() || allow_audience.iter().any(String::is_empty) {
            wrong("audience", "no audience may be empty: that would be the API server's own".into());
        }
        // A token that STS is shown would be one for us, too: whoever is shown it could ask for more of them.
        if allow_audience.contains(&audience) {
            wrong(
                "audience",
                format!("{audience:?} is in --allow-audience: tokens for STS must not be for the issuer"),
            );
        }
        let cluster_name = cluster_name.unwrap_or_default();
        if !is_value(&cluster_name) {
            wrong(
                "cluster-name",
                format!("{cluster_name:?}: STS takes only letters, digits, spaces and _.:/=+-@"),
            );
        }
        match (issuer, listen, admin_listen, agent, mistakes.is_empty()) {
            (Some(issuer), Some(listen), Some(admin_listen), Some(agent), true) => Ok(Self {
                issuer,
                keys,
                tls,
                listen,
                admin_listen,
                kube: kubeconfig.map_or(Kube::InCluster, Kube::Kubeconfig),
                audience,
                agent,
                cluster_name,
                allow_audience,
            }),
            _ => Err(Mistakes(mistakes)),
        }
    }

    /// The API server's, for whoever closes all other files.
    pub fn kube(&self) -> &Kube {
        &self.kube
    }

    /// The folders that are read again and again.
    pub fn folders(&self) -> Vec<PathBuf> {
        vec![self.keys.clone(), self.tls.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> Args {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            args: Args,
        }
        <Cli as clap::Parser>::try_parse_from(["rolecall", "--issuer", "https://oidc.example.com/a"])
            .unwrap()
            .args
    }

    #[test]
    fn the_issuer_is_all_that_is_required() {
        let config = Config::from_args(args()).unwrap();
        assert_eq!((&*config.audience, config.agent.to_string()), (AUDIENCE, "rolecall/rolecall".to_owned()));
        assert_eq!(config.allow_audience, [config::AUDIENCE]);
        let Mistakes(mistakes) = Config::from_args(Args { issuer: None, ..args() }).unwrap_err();
        assert!(mistakes.len() == 1 && mistakes[0].starts_with("--issuer: is required"), "{mistakes:?}");
    }

    #[test]
    fn every_mistake_is_reported_at_once() {
        let args = Args {
            issuer: Some("http://oidc.example.com".into()),
            listen: "8443".into(),
            admin_listen: "everywhere".into(),
            agent: "rolecall".into(),
            audience: String::new(),
            cluster_name: Some("a&b".into()),
            ..args()
        };
        let Mistakes(mistakes) = Config::from_args(args).unwrap_err();
        let flags: Vec<&str> = mistakes.iter().map(|mistake| mistake.split(':').next().unwrap()).collect();
        assert_eq!(
            flags,
            ["--issuer", "--listen", "--admin-listen", "--agent", "--audience", "--cluster-name"]
        );
    }

    #[test]
    fn a_token_for_sts_is_never_one_for_the_issuer() {
        let args = Args { audience: config::AUDIENCE.into(), ..args() };
        let Mistakes(mistakes) = Config::from_args(args).unwrap_err();
        assert!(mistakes[0].contains("is in --allow-audience"), "{mistakes:?}");
    }
}
