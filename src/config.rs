//! Every flag and variable of the agent: default, unit, meaning; checked once, all mistakes reported together.

mod audience;
pub(crate) mod endpoint;
pub mod imds;
mod issuer;
mod role_source;
mod sts_mode;
pub(crate) mod url;
pub mod variables;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use self::role_source::RoleSourceFlags;
pub use self::sts_mode::StsMode;
use crate::identity::authorization::{self, Authorization, Required, TokenSource};
use crate::policy::Policy;
use crate::role::session_name::Template;
use crate::role::{Defaults, SESSION_LIFE, parse_duration};
use crate::sts::endpoint::Settings;

/// The port of the container-credential listeners: 80 cannot be shared with an ingress on the host network.
pub const PORT: u16 = 9902;
/// The port of the metrics listener, where `--metrics-listen` names none.
pub const METRICS_PORT: u16 = 9903;
/// The addresses that SDKs accept over plain http, as listeners.
pub const LISTEN: [&str; 3] = ["169.254.170.23:9902", "[fd00:ec2::23]:9902", "169.254.170.2:9902"];
/// Where the probes, `/statusz` and `rolecall net verify` find the agent.
pub const LOCAL_SOCKET: &str = "/run/rolecall/agent.sock";
/// Where `daemonset/issuer/agent` mounts the agent's own token for the issuer.
pub const ISSUER_TOKEN: &str = "/etc/rolecall/issuer/token";
/// The default token audience: what IAM's OIDC providers are set up with.
pub const AUDIENCE: &str = "sts.amazonaws.com";

/// `rolecall agent`: flags as they were written. Each has an environment variable `ROLECALL_<FLAG>`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// This node's name (downward API: spec.nodeName). Required.
    #[arg(long, env = "ROLECALL_NODE_NAME")]
    pub node_name: Option<String>,
    /// The cluster's name, for session names.
    #[arg(long, env = "ROLECALL_CLUSTER_NAME")]
    pub cluster_name: Option<String>,
    /// Container-credential listener, ADDRESS:PORT. Repeatable [default: port 9902 of 169.254.170.23, fd00:ec2::23 and 169.254.170.2]
    #[arg(long, env = "ROLECALL_LISTEN", value_delimiter = ',')]
    pub listen: Vec<String>,
    /// Instance-metadata listener, ADDRESS:PORT, for pods without any variable; `rolecall net install` needs it too. Repeatable
    /// [default: none]
    #[arg(long, env = "ROLECALL_IMDS_LISTEN", value_delimiter = ',')]
    pub imds_listen: Vec<String>,
    /// Answer instance metadata without a session token too (version 1): any request forgery then reads a role's keys.
    #[arg(long, env = "ROLECALL_IMDS_V1")]
    pub imds_v1: bool,
    /// A namespace whose pods without a role of their own reach the node's own instance metadata, its role included.
    /// Repeatable [default: none]
    #[arg(long, env = "ROLECALL_IMDS_PASSTHROUGH_NAMESPACE", value_delimiter = ',')]
    pub imds_passthrough_namespace: Vec<String>,
    /// Prometheus listener, ADDRESS:PORT, or an address alone for port 9903.
    #[arg(long, env = "ROLECALL_METRICS_LISTEN", default_value = "127.0.0.1:9903")]
    pub metrics_listen: String,
    /// Unix socket for probes and status.
    #[arg(long, env = "ROLECALL_LOCAL_SOCKET", default_value = LOCAL_SOCKET)]
    pub local_socket: PathBuf,
    /// Kubeconfig file [default: the pod's own ServiceAccount]
    #[arg(long, env = "ROLECALL_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Ask the API server as this node, as the manifests for Kubernetes 1.36 and later allow.
    #[arg(long, env = "ROLECALL_IMPERSONATE_NODE")]
    pub impersonate_node: bool,
    /// How callers are told apart: kernel (network namespace and cgroup; needs hostPID), or ip (source address against
    /// the kube API's podIPs).
    #[arg(long, env = "ROLECALL_IDENTITY", default_value = "kernel")]
    pub identity: String,
    /// What every request must carry in Authorization: off (nothing), present (any word, which stops plain request
    /// forgery), or token (a token of the very pod).
    #[arg(long, env = "ROLECALL_REQUIRE_AUTHORIZATION", default_value = "off")]
    pub require_authorization: String,
    /// Audience of the tokens in Authorization by which pods show the agent who they are. Repeatable.
    #[arg(long, env = "ROLECALL_AUTHORIZATION_AUDIENCE", value_delimiter = ',', default_value = authorization::AUDIENCE)]
    pub authorization_audience: Vec<String>,
    /// Where the tokens come from that STS is shown: kubernetes (the agent mints them), caller (each pod's own
    /// projected token in Authorization; the agent needs no right to mint), or issuer (`rolecall issuer` signs them).
    #[arg(long, env = "ROLECALL_TOKEN_SOURCE", default_value = "kubernetes")]
    pub token_source: String,
    /// Where that issuer is, https only.
    #[arg(long, env = "ROLECALL_ISSUER_URL", value_name = "URL")]
    pub issuer_url: Option<String>,
    /// PEM file with the only roots that the issuer's certificate may lead to; read again when it changes [default: the
    /// system's]
    #[arg(long, env = "ROLECALL_ISSUER_CA_BUNDLE", value_name = "FILE")]
    pub issuer_ca_bundle: Option<PathBuf>,
    /// File with the agent's own token for the issuer, which the kubelet renews.
    #[arg(long, env = "ROLECALL_ISSUER_TOKEN_FILE", value_name = "FILE", default_value = ISSUER_TOKEN)]
    pub issuer_token_file: PathBuf,
    /// Audience of that token and of the pods' tokens that the issuer is shown.
    #[arg(long, env = "ROLECALL_ISSUER_AUDIENCE", default_value = crate::issuer::AUDIENCE)]
    pub issuer_audience: String,
    /// How roles are assumed: web-identity (by the pod's ServiceAccount token), or assume-role (by the agent's own base
    /// credentials, for clusters whose tokens STS cannot check; needs --allow-role).
    #[arg(long, env = "ROLECALL_STS_MODE", default_value = "web-identity")]
    pub sts_mode: String,
    /// Audience of the tokens that STS is shown.
    #[arg(long, env = "ROLECALL_AUDIENCE", default_value = AUDIENCE)]
    pub audience: String,
    /// What an annotation may ask for as audience; the API server's own only if it is listed here. Repeatable [default:
    /// the value of --audience]
    #[arg(long, env = "ROLECALL_ALLOW_AUDIENCE", value_delimiter = ',')]
    pub allow_audience: Vec<String>,
    /// AWS region of the STS endpoint [default: AWS_REGION, else the node's topology label]
    #[arg(long, env = "ROLECALL_REGION")]
    pub region: Option<String>,
    /// Another STS: LocalStack, MinIO, Ceph, a VPC endpoint [default: AWS_ENDPOINT_URL_STS]
    #[arg(long, env = "ROLECALL_STS_ENDPOINT_URL")]
    pub sts_endpoint_url: Option<String>,
    /// PEM file with further roots for that endpoint; read again when it changes [default: AWS_CA_BUNDLE]
    #[arg(long, env = "ROLECALL_STS_CA_BUNDLE")]
    pub sts_ca_bundle: Option<PathBuf>,
    /// AWS's FIPS endpoint of STS [default: AWS_USE_FIPS_ENDPOINT]
    #[arg(long, env = "ROLECALL_USE_FIPS_ENDPOINT")]
    pub use_fips_endpoint: bool,
    /// AWS's dual-stack endpoint of STS, which has IPv6 addresses, too [default: AWS_USE_DUALSTACK_ENDPOINT]
    #[arg(long, env = "ROLECALL_USE_DUALSTACK_ENDPOINT")]
    pub use_dualstack_endpoint: bool,
    /// Session duration, 15m to 12h; at most the role's MaxSessionDuration.
    #[arg(long, env = "ROLECALL_SESSION_DURATION", default_value = "1h")]
    pub session_duration: String,
    /// Session name; may also hold {pod}, {node} and {cluster}.
    #[arg(long, env = "ROLECALL_SESSION_NAME", default_value = "{namespace}.{service-account}")]
    pub session_name: String,
    /// NAMESPACE_GLOB=ARN_GLOB: which namespace may have which role; `rolecall roles` prints them. Repeatable; required with
    /// --sts-mode=assume-role and --role-source=pod-annotation [default: any]
    #[arg(long, env = "ROLECALL_ALLOW_ROLE", value_delimiter = ',')]
    pub allow_role: Vec<String>,
    /// Whose annotations name the role.
    #[command(flatten)]
    pub role_source: RoleSourceFlags,
}

/// Where the API server is found.
#[derive(Clone, Debug)]
pub enum Kube {
    /// The pod's own ServiceAccount.
    InCluster,
    /// A kubeconfig file.
    Kubeconfig(PathBuf),
}

/// How callers are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// By source address, against the kube API's podIPs.
    Ip,
    /// By network namespace and cgroup.
    Kernel,
}

/// The configuration as understood.
#[derive(Clone, Debug)]
pub struct Config {
    /// `--node-name`
    pub node_name: Arc<str>,
    /// `--listen`
    pub listen: Vec<SocketAddr>,
    /// `--imds-listen`, and what goes with it.
    pub imds: Option<imds::Imds>,
    /// `--metrics-listen`
    pub metrics_listen: SocketAddr,
    /// `--local-socket`
    pub local_socket: PathBuf,
    /// `--kubeconfig`
    pub kube: Kube,
    /// `--impersonate-node`
    pub impersonate_node: bool,
    /// `--identity`
    pub identity: Identity,
    /// `--require-authorization`, `--authorization-audience` and `--token-source`
    pub authorization: Authorization,
    /// `--sts-mode`, and for assume-role where the base credentials come from.
    pub sts_mode: StsMode,
    /// `--region`; without one, the node's label is asked.
    pub region: Option<String>,
    /// `--sts-endpoint-url`, `--sts-ca-bundle`, `--use-fips-endpoint`, `--use-dualstack-endpoint`, and the proxy.
    pub sts: Settings,
    /// `--allow-audience` as it was written; what holds is in `plan`.
    pub allow_audience: Vec<String>,
    /// What every plan starts from.
    pub plan: Defaults,
}

/// The effective configuration as one log line.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            node_name,
            listen,
            imds,
            metrics_listen,
            local_socket,
            kube,
            impersonate_node,
            identity,
            authorization,
            sts_mode,
            region,
            sts,
            allow_audience: _,
            plan,
        } = self;
        let Settings { url, fips, dual_stack, ca_bundle, proxy } = sts;
        write!(f, "node-name={node_name} listen={listen:?} metrics-listen={metrics_listen} ")?;
        if let Some(imds::Imds { listen, v1, passthrough }) = imds {
            write!(f, "imds-listen={listen:?} imds-v1={v1} imds-passthrough-namespace={passthrough:?} ")?;
        }
        write!(f, "local-socket={} kube={kube:?} ", local_socket.display())?;
        write!(f, "impersonate-node={impersonate_node} identity={identity:?} region={region:?} ")?;
        write!(f, "require-authorization={:?} ", authorization.required)?;
        write!(f, "authorization-audience={:?} ", authorization.audiences)?;
        write!(f, "token-source={:?} ", authorization.tokens)?;
        write!(f, "sts-mode={sts_mode} ")?;
        write!(f, "sts-endpoint-url={url:?} sts-ca-bundle={ca_bundle:?} use-fips-endpoint={fips} ")?;
        write!(f, "use-dualstack-endpoint={dual_stack} sts-proxy={proxy:?} ")?;
        write!(f, "audience={} allow-audience={:?} ", plan.audience, plan.allowed_audiences)?;
        write!(
            f,
            "session-duration={:?} session-name={:?} ",
            plan.session_duration,
            plan.session_name.as_str()
        )?;
        write!(f, "allow-role={:?} role-source={:?}", plan.policy, plan.source)
    }
}

/// Everything that is wrong with a configuration.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub struct Mistakes(pub Vec<String>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for mistake in &self.0 {
            writeln!(f, "error: {mistake}")?;
        }
        Ok(())
    }
}

impl Config {
    /// Checks `args`; `variable` looks AWS's own environment variables up.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn from_args(args: Args, variable: impl Fn(&str) -> Option<String>) -> Result<Self, Mistakes> {
        // Every field by name: a flag that nobody reads does not compile.
        let Args {
            node_name,
            cluster_name,
            listen,
            imds_listen,
            imds_v1,
            imds_passthrough_namespace,
            metrics_listen,
            local_socket,
            kubeconfig,
            impersonate_node,
            identity,
            require_authorization,
            authorization_audience,
            token_source,
            issuer_url,
            issuer_ca_bundle,
            issuer_token_file,
            issuer_audience,
            sts_mode,
            audience,
            allow_audience,
            region,
            sts_endpoint_url,
            sts_ca_bundle,
            use_fips_endpoint,
            use_dualstack_endpoint,
            session_duration,
            session_name,
            allow_role,
            role_source,
        } = args;
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let mut mistakes = Vec::new();
        let mut wrong = |flag: &str, why: String| mistakes.push(format!("--{flag}: {why}"));

        let node_name = node_name.filter(|name| !name.is_empty()).unwrap_or_else(|| {
            wrong("node-name", "is required; in a pod: ROLECALL_NODE_NAME from spec.nodeName".into());
            String::new()
        });
        let listen = if listen.is_empty() { LISTEN.map(str::to_owned).to_vec() } else { listen };
        let mut addresses = Vec::new();
        for text in &listen {
            match text.parse::<SocketAddr>() {
                // Any pod of any node could dial the node's own addresses; only link-local ones stay on the node.
                Ok(address) if address.ip().is_unspecified() => {
                    wrong("listen", format!("{text:?} is every address of the node; name one"));
                }
                Ok(address) => addresses.push(address),
                Err(_) => wrong("listen", format!("{text:?} is not ADDRESS:PORT, such as {}", LISTEN[0])),
            }
        }
        // The downward API gives the node's address without a port, and IPv6 without brackets.
        let alone = metrics_listen.parse::<IpAddr>().map(|address| SocketAddr::new(address, METRICS_PORT));
        let metrics_listen = alone.or_else(|_| metrics_listen.parse()).unwrap_or_else(|_| {
            wrong("metrics-listen", format!("{metrics_listen:?} is not ADDRESS:PORT or ADDRESS"));
            SocketAddr::from(([127, 0, 0, 1], METRICS_PORT))
        });
        let identity = match identity.as_str() {
            "kernel" => Identity::Kernel,
            "ip" => Identity::Ip,
            other => {
                wrong("identity", format!("{other:?} is neither kernel nor ip"));
                Identity::Kernel
            }
        };
        let required = match require_authorization.as_str() {
            "off" => Required::Off,
            "present" => Required::Present,
            "token" => Required::Token,
            other => {
                wrong("require-authorization", format!("{other:?} is none of off, present and token"));
                Required::Token
            }
        };
        let allowed_audiences =
            if allow_audience.is_empty() { vec![audience.clone()] } else { allow_audience.clone() };
        let flags = issuer::Flags {
            url: issuer_url,
            ca_bundle: issuer_ca_bundle,
            token_file: issuer_token_file,
            audience: issuer_audience,
        };
        let others = [&allowed_audiences[..], &authorization_audience].concat();
        let issuer = issuer::door(flags, token_source == "issuer", &others, &mut wrong);
        let tokens = match (token_source.as_str(), issuer) {
            ("issuer", Some(door)) => TokenSource::Issuer(door),
            ("caller", _) => TokenSource::Caller,
            // An issuer without its URL is a mistake already.
            ("kubernetes" | "issuer", _) => TokenSource::Kubernetes,
            (other, _) => {
                wrong("token-source", format!("{other:?} is none of kubernetes, caller and issuer"));
                TokenSource::Kubernetes
            }
        };
        // One header holds one token, and a projected one has one audience.
        if matches!((&required, &tokens), (Required::Token, TokenSource::Caller))
            && !authorization_audience.contains(&audience)
        {
            let why = format!(
                "with --token-source=caller the token that is required is the one for STS: needs {audience:?}, the value of --audience"
            );
            wrong("authorization-audience", why);
        }
        let claims_in_tokens = matches!(tokens, TokenSource::Issuer(_));
        let authorization = Authorization { required, audiences: authorization_audience, tokens };
        let flags = imds::Flags { listen: imds_listen, v1: imds_v1, passthrough: imds_passthrough_namespace };
        let imds = imds::check(flags, identity, &authorization, &mut wrong);
        let sts_mode = sts_mode::Asked {
            mode: &sts_mode,
            token_source: &token_source,
            audience: &audience,
            allow_audience: &allow_audience,
            allow_role: &allow_role,
            session_name: &session_name,
        };
        let ours = [&addresses[..], imds.as_ref().map_or(&[], |imds| &imds.listen)].concat();
        let sts_mode = sts_mode.check(variable, &ours, &mut wrong);
        for (flag, values) in [
            ("audience", std::slice::from_ref(&audience)),
            ("allow-audience", &allow_audience),
            ("authorization-audience", &authorization.audiences),
        ] {
            if values.iter().any(String::is_empty) {
                wrong(flag, "is empty: that would be the API server's own audience".into());
            }
        }
        if !allowed_audiences.contains(&audience) {
            wrong("allow-audience", format!("lacks the value of --audience, {audience:?}"));
        }
        let session_duration = parse_duration(&session_duration)
            .filter(|life| (SESSION_LIFE.0..=SESSION_LIFE.1).contains(life))
            .unwrap_or_else(|| {
                wrong(
                    "session-duration",
                    format!("{session_duration:?} is not from 15m to 12h, with its unit"),
                );
                Duration::default()
            });
        let region = region.filter(|region| !region.is_empty()).or_else(|| variable("AWS_REGION"));
        if let Some(region) = region.as_ref().filter(|region| !is_region(region)) {
            wrong("region", format!("{region:?} is not a region, such as eu-west-1"));
        }
        let cluster = cluster_name.unwrap_or_default();
        let session_name =
            Template::parse(&session_name, &node_name, &cluster).map_err(|why| wrong("session-name", why));
        let policy = Policy::parse(&allow_role).map_err(|why| wrong("allow-role", why));
        let source = role_source.check(policy.as_ref().ok(), &mut wrong);
        let by_agent = sts_mode.base().is_some();
        let flags = endpoint::Flags {
            url: sts_endpoint_url,
            ca_bundle: sts_ca_bundle,
            fips: use_fips_endpoint,
            dual_stack: use_dualstack_endpoint,
        };
        let sts = endpoint::settings(flags, variable, &mut mistakes);
        // Other STSs may have other names for theirs.
        if let Some(region) = region.as_ref().filter(|region| sts.url.is_none() && !is_lower(region)) {
            let why = format!("{region:?} is none of AWS's, which are in lower case, such as eu-west-1");
            mistakes.push(format!("--region: {why}"));
        }
        let (Ok(session_name), Ok(policy), true) = (session_name, policy, mistakes.is_empty()) else {
            return Err(Mistakes(mistakes));
        };
        Ok(Self {
            node_name: node_name.into(),
            listen: addresses,
            imds,
            metrics_listen,
            local_socket,
            identity,
            authorization,
            sts_mode,
            impersonate_node,
            kube: kubeconfig.map_or(Kube::InCluster, Kube::Kubeconfig),
            region,
            sts,
            allow_audience,
            plan: Defaults {
                source,
                audience: audience.into(),
                allowed_audiences,
                session_duration,
                session_name,
                policy,
                by_agent,
                claims_in_tokens,
            },
        })
    }
}

fn is_lower(text: &str) -> bool {
    !text.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// It becomes a part of STS's host name.
fn is_region(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

#[cfg(test)]
#[path = "config/tests.rs"]
mod tests;
