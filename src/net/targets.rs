//! The flags of `rolecall net`, checked: which addresses are to be held, dialled and redirected, and which rules belong on a node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::address::{Holder, Survey};
use super::cgroup;
use super::rules::{HostPods, MetadataGuard, Rules};
use crate::config::LISTEN;

/// The address of EKS Pod Identity, which SDKs accept in `AWS_CONTAINER_CREDENTIALS_FULL_URI` over plain HTTP.
pub(super) const EKS: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23));
/// The same for IPv6.
pub(super) const EKS_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23));
/// The address of ECS: SDKs put `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI` behind it.
pub(super) const ECS: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2));

/// What every step has to know.
#[derive(clap::Args)]
pub(super) struct ListenArgs {
    /// Where the agent listens for container credentials (repeatable, as for `rolecall agent`)
    #[arg(long, env = "ROLECALL_LISTEN", value_name = "ADDR:PORT", value_delimiter = ',',
          default_values = LISTEN)]
    pub(super) listen: Vec<String>,
    /// Where the agent answers instance metadata, 169.254.170.2:PORT and [fd00:ec2::23]:PORT (repeatable, as for `rolecall agent`): what
    /// pods ask 169.254.169.254 and fd00:ec2::254 goes there
    #[arg(long, env = "ROLECALL_IMDS_LISTEN", value_name = "ADDR:PORT", value_delimiter = ',')]
    pub(super) imds_listen: Vec<String>,
    /// Send port 80 of the EKS Pod Identity addresses to the agent too, unless somebody else (EKS's own agent) has one of them
    #[arg(long, env = "ROLECALL_REDIRECT_EKS_PORT", value_parser = clap::builder::BoolishValueParser::new())]
    pub(super) redirect_eks_port: bool,
    /// What becomes of pods' requests to the node's instance metadata, 169.254.169.254 and fd00:ec2::254
    #[arg(long, env = "ROLECALL_METADATA_GUARD", value_enum, default_value_t)]
    pub(super) metadata_guard: MetadataGuard,
    /// With enforce, refuse pods on the host network too: the cgroup of all pods, such as kubepods.slice (cgroup version 2; not from a container)
    #[arg(long, env = "ROLECALL_METADATA_GUARD_PODS_CGROUP", value_name = "PATH")]
    pub(super) metadata_guard_pods_cgroup: Option<String>,
    /// A cgroup in there that goes on to reach instance metadata (repeatable); one that does not exist is passed over
    #[arg(long, env = "ROLECALL_METADATA_GUARD_EXEMPT_CGROUP", value_name = "PATH", value_delimiter = ',')]
    pub(super) metadata_guard_exempt_cgroup: Vec<String>,
    /// The user that the agent runs as: owns the run directory, and alone answers from our addresses
    #[arg(long, env = "ROLECALL_RUN_UID", default_value_t = 9902)]
    pub(super) run_uid: u32,
}

/// Listeners, checked: what is to be held, dialled and redirected.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Targets {
    pub(super) listeners: Vec<SocketAddr>,
    /// Those of instance metadata.
    pub(super) imds: Vec<SocketAddr>,
    /// The one port of the listeners on well-known addresses; `None` without any.
    port: Option<u16>,
    redirect_eks_port: bool,
    pub(super) metadata_guard: MetadataGuard,
    pub(super) host_pods: Option<HostPods>,
    pub(super) run_uid: u32,
}

impl Targets {
    /// All mistakes together, so that an operator corrects a manifest once.
    pub(super) fn from_args(args: &ListenArgs) -> Result<Self, Vec<String>> {
        let mut mistakes = Vec::new();
        let mut listeners: Vec<SocketAddr> = Vec::new();
        for text in &args.listen {
            match text.parse::<SocketAddr>() {
                Ok(addr) if addr.ip().is_unspecified() => mistakes.push(format!(
                    "--listen {text}: every address of the node would serve credentials; name one"
                )),
                Ok(addr) if addr.port() == 0 => {
                    mistakes.push(format!("--listen {text}: the port must be known before the agent runs"));
                }
                Ok(addr) if listeners.contains(&addr) => {}
                Ok(addr) => listeners.push(addr),
                Err(_) => {
                    mistakes.push(format!("--listen {text}: not ADDRESS:PORT ([ADDRESS]:PORT for IPv6)"))
                }
            }
        }
        let mut ports: Vec<u16> =
            listeners.iter().filter(|addr| well_known(addr.ip())).map(SocketAddr::port).collect();
        ports.sort_unstable();
        ports.dedup();
        if ports.len() > 1 {
            mistakes.push(format!("--listen: one port for {EKS}, {EKS_V6} and {ECS}, not {ports:?}"));
        }
        if args.redirect_eks_port && !listeners.iter().any(|addr| [EKS, EKS_V6].contains(&addr.ip())) {
            mistakes.push(format!("--redirect-eks-port: no --listen on {EKS} or {EKS_V6} to send it to"));
        }
        let imds = imds_listeners(&args.imds_listen, &ports, &mut mistakes);
        let host_pods = args.metadata_guard_pods_cgroup.clone();
        let exempt = args.metadata_guard_exempt_cgroup.clone();
        let host_pods = host_pods.map(|cgroup| HostPods { cgroup, exempt });
        mistakes.extend(host_pod_mistakes(args, host_pods.as_ref()));
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        Ok(Self {
            listeners,
            imds,
            port: ports.first().copied(),
            redirect_eks_port: args.redirect_eks_port,
            metadata_guard: args.metadata_guard,
            host_pods,
            run_uid: args.run_uid,
        })
    }

    /// All that is to be dialled.
    pub(super) fn dialled(&self) -> impl Iterator<Item = SocketAddr> {
        self.listeners.iter().chain(&self.imds).copied()
    }

    /// All that is to be held, each once.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        for ip in self.dialled().map(|at| at.ip()) {
            if !addresses.contains(&ip) {
                addresses.push(ip);
            }
        }
        addresses
    }

    /// The part of it that a rule can name now.
    fn nameable_host_pods(&self) -> Option<HostPods> {
        let HostPods { cgroup, exempt } = self.host_pods.clone()?;
        let exempt = exempt.into_iter().filter(|path| cgroup::exists(path)).collect();
        cgroup::check(&cgroup).is_ok().then_some(HostPods { cgroup, exempt })
    }

    /// Why `--redirect-eks-port` does nothing on this node, if so.
    pub(super) fn eks_port_left(&self, survey: &Survey) -> Option<String> {
        let (ip, link) = eks_port_owner(survey).filter(|_| self.redirect_eks_port)?;
        Some(format!(
            "{ip} is on link {link}, not ours, so its port 80 is another agent's (EKS Pod Identity?) and left alone; \
             drop --redirect-eks-port, or take that agent away"
        ))
    }

    /// The rules that belong on this node. Whoever else holds the address of ECS or of EKS serves its port 80 too: that is not ours to
    /// redirect, or the other agent's pods would ask us.
    pub(super) fn rules(&self, survey: &Survey) -> Rules {
        let port = self.port.filter(|&port| port != 80);
        let listens = |ip: IpAddr| self.listeners.iter().any(|addr| addr.ip() == ip);
        let ecs_is_ours = matches!(survey.holder(ECS), Holder::Ours { .. });
        // Where nobody on this node has the address, what is sent to it would leave the node.
        let ecs_is_here = matches!(survey.holder(ECS), Holder::Ours { .. } | Holder::Link { .. });
        Rules {
            relative_uri: port.filter(|_| listens(ECS) && ecs_is_ours),
            eks: port.filter(|_| self.redirect_eks_port && eks_port_owner(survey).is_none()),
            addresses: self.port,
            imds: self.imds.first().map(SocketAddr::port).filter(|_| ecs_is_here),
            agent_uid: self.run_uid,
            uplinks: survey.uplinks(),
            metadata: self.metadata_guard,
            host_pods: self.nameable_host_pods(),
        }
    }
}

/// Who else has one of the addresses whose port 80 the EKS Pod Identity agent serves: which, and on which link.
fn eks_port_owner(survey: &Survey) -> Option<(IpAddr, String)> {
    [EKS, EKS_V6].into_iter().find_map(|ip| Some((ip, survey.theirs(ip)?)))
}

/// One port, of the two addresses that the rule names, beside those of the container credentials.
fn imds_listeners(texts: &[String], ports: &[u16], mistakes: &mut Vec<String>) -> Vec<SocketAddr> {
    let mut listeners: Vec<SocketAddr> = Vec::new();
    for text in texts {
        match text.parse::<SocketAddr>() {
            Ok(at) if ![ECS, EKS_V6].contains(&at.ip()) || at.port() == 0 => {
                mistakes.push(format!(
                    "--imds-listen {text}: only {ECS}:PORT and [{EKS_V6}]:PORT are redirected to"
                ));
            }
            Ok(at) if listeners.contains(&at) => {}
            Ok(at) => listeners.push(at),
            Err(_) => {
                mistakes.push(format!("--imds-listen {text}: not ADDRESS:PORT ([ADDRESS]:PORT for IPv6)"))
            }
        }
    }
    if let Some(first) = listeners.first() {
        if listeners.iter().any(|at| at.port() != first.port()) {
            mistakes.push(format!("--imds-listen: one port for {ECS} and {EKS_V6}"));
        }
        if ports.contains(&first.port()) {
            mistakes.push(format!("--imds-listen: port {} is that of --listen", first.port()));
        }
        if ports.is_empty() {
            mistakes.push(format!(
                "--imds-listen: needs a --listen on {EKS}, {EKS_V6} or {ECS}, whose guard it shares"
            ));
        }
        if !listeners.iter().any(|at| at.ip() == ECS) {
            mistakes.push(format!(
                "--imds-listen: needs {ECS}:{} too, or pods with IPv4 find nobody",
                first.port()
            ));
        }
    }
    listeners
}

fn host_pod_mistakes(args: &ListenArgs, host_pods: Option<&HostPods>) -> Vec<String> {
    let Some(HostPods { cgroup, exempt }) = host_pods else {
        let alone = !args.metadata_guard_exempt_cgroup.is_empty();
        let why = "--metadata-guard-exempt-cgroup: from what? --metadata-guard-pods-cgroup is missing";
        return alone.then(|| why.to_owned()).into_iter().collect();
    };
    let mut mistakes = Vec::new();
    if args.metadata_guard != MetadataGuard::Enforce {
        mistakes.push("--metadata-guard-pods-cgroup: only with --metadata-guard=enforce".to_owned());
    }
    if !cgroup::is_path(cgroup) {
        mistakes.push(format!("--metadata-guard-pods-cgroup {cgroup:?}: not a path below /sys/fs/cgroup"));
    }
    for path in exempt {
        let inside = path.strip_prefix(cgroup).is_some_and(|rest| rest.starts_with('/'));
        if !inside || !cgroup::is_path(path) {
            mistakes.push(format!("--metadata-guard-exempt-cgroup {path:?}: not a path below {cgroup}/"));
        }
    }
    mistakes
}

/// The only addresses that we ever add: SDKs accept no others over plain HTTP, and any other address of a node has an owner.
pub(super) fn well_known(ip: IpAddr) -> bool {
    [EKS, EKS_V6, ECS].contains(&ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(listen: &[&str], redirect_eks_port: bool) -> Result<Targets, Vec<String>> {
        let listen = listen.iter().map(ToString::to_string).collect();
        Targets::from_args(&ListenArgs { redirect_eks_port, ..args(listen) })
    }

    fn args(listen: Vec<String>) -> ListenArgs {
        ListenArgs {
            listen,
            imds_listen: Vec::new(),
            redirect_eks_port: false,
            metadata_guard: MetadataGuard::Off,
            metadata_guard_pods_cgroup: None,
            metadata_guard_exempt_cgroup: Vec::new(),
            run_uid: 9902,
        }
    }

    #[test]
    fn the_defaults_share_port_9902() {
        assert_eq!(targets(&LISTEN, true).unwrap().port, Some(9902));
    }

    #[test]
    fn every_mistake_is_reported_at_once() {
        let mistakes =
            targets(&["nonsense", "0.0.0.0:9902", "127.0.0.1:0", "169.254.170.2:1"], true).unwrap_err();
        assert_eq!(mistakes.len(), 4, "{mistakes:#?}");
    }

    #[test]
    fn redirects_with_two_targets_are_refused() {
        let mistakes = targets(&["169.254.170.23:9902", "169.254.170.2:9903"], false).unwrap_err();
        assert!(mistakes[0].contains("one port"), "{mistakes:?}");
    }

    #[test]
    fn a_listener_named_twice_is_one() {
        assert_eq!(targets(&["169.254.170.2:9902"; 2], false).unwrap().listeners.len(), 1);
    }

    #[test]
    fn instance_metadata_has_a_port_of_its_own_on_the_redirects_addresses() {
        let with = |listen: &[&str], imds: &[&str]| {
            let text = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
            Targets::from_args(&ListenArgs { imds_listen: text(imds), ..args(text(listen)) })
        };
        let good = with(&LISTEN, &crate::config::imds::LISTEN).unwrap();
        assert_eq!((good.imds.len(), good.addresses().len()), (2, 3));
        for (imds, says) in [
            (&["169.254.170.23:9904"][..], "are redirected to"),
            (&["10.0.0.1:9904"], "are redirected to"),
            (&["169.254.170.2:9902"], "is that of --listen"),
            (&["169.254.170.2:9904", "[fd00:ec2::23]:9905"], "one port"),
            (&["[fd00:ec2::23]:9904"], "needs 169.254.170.2:9904 too"),
            (&["nonsense"], "not ADDRESS:PORT"),
        ] {
            let mistakes = with(&LISTEN, imds).unwrap_err();
            assert!(mistakes.len() == 1 && mistakes[0].contains(says), "{imds:?}: {mistakes:?}");
        }
        let mistakes = with(&["127.0.0.1:9902"], &["169.254.170.2:9904"]).unwrap_err();
        assert!(mistakes[0].contains("needs a --listen"), "{mistakes:?}");
    }

    #[test]
    fn port_80_needs_no_redirect() {
        let at_80 = targets(&["169.254.170.2:80"], false).unwrap();
        let rules = at_80.rules(&Survey::default());
        assert_eq!((rules.relative_uri, rules.eks, rules.addresses), (None, None, Some(80)));
    }

    #[test]
    fn cgroups_are_named_whole_and_only_where_pods_are_refused() {
        let mistakes = |metadata_guard, pods: Option<&str>, exempt: &[&str]| {
            let args = ListenArgs {
                metadata_guard,
                metadata_guard_pods_cgroup: pods.map(str::to_owned),
                metadata_guard_exempt_cgroup: exempt.iter().map(ToString::to_string).collect(),
                ..args(vec![LISTEN[0].to_owned()])
            };
            Targets::from_args(&args).err().unwrap_or_default().len()
        };
        let enforce = MetadataGuard::Enforce;
        assert_eq!(mistakes(enforce, Some("kubepods"), &["kubepods/burstable/pod1"]), 0);
        assert_eq!(mistakes(MetadataGuard::Observe, Some("kubepods"), &[]), 1);
        assert_eq!(mistakes(enforce, None, &["kubepods/pod1"]), 1);
        assert_eq!(mistakes(enforce, Some("/kubepods"), &[]), 1);
        assert_eq!(mistakes(enforce, Some("kubepods"), &["kubepods", "system.slice/a", "kubepods/\"x"]), 3);
    }
}
