//! The link-local addresses, by netlink: on a link of our own, added only where nobody holds or routes them, and taken back only if ours.
//!
//! Our link is a dummy named [`LINK`]: whatever is on it is ours. A kernel without dummy links gets the addresses on `lo`, each marked:
//! with the label `lo:rolecall` (IPv4, every kernel) and with the address protocol 170 (both families, Linux 5.18). An IPv6 address on the
//! `lo` of an older kernel keeps no mark, so [`Kernel::remove`] leaves it there rather than guess.
//!
//! No address of ours is ever the source of the node's own traffic: IPv4 has link scope, IPv6 is deprecated from the start. Otherwise the
//! kernel would take an address on `lo`, its first link, for all that it sends to pods behind veths without an address (kubelet's probes).

mod uplinks;

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use futures_util::{Stream, TryStreamExt};
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope, CacheInfo,
};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use rtnetlink::{Handle, LinkDummy, LinkUnspec, RouteMessageBuilder};

/// The link of our own.
pub const LINK: &str = "rolecall0";
/// Where the addresses go on a kernel without dummy links.
pub const LOOPBACK: &str = "lo";
/// Our mark on an IPv4 address of `lo`; the kernel wants the link's name in front.
const LABEL: &str = "lo:rolecall";
/// Our mark on an address of either family (`IFA_PROTO`). 1 to 3 are the kernel's own, the others are free.
const PROTOCOL: u8 = 170;

/// Why the kernel's addresses could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No netlink socket.
    #[error("cannot open a netlink socket: {0}")]
    Connect(#[source] io::Error),
    /// The kernel refused one request. "Operation not permitted" is a missing `CAP_NET_ADMIN`.
    #[error("cannot {act}: {source}{}", hint(source))]
    Refused {
        /// What was tried, with its object.
        act: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Somebody's link has our name; addresses put there would not be ours alone.
    #[error("a link named {LINK} exists and is no dummy: rename it")]
    LinkTaken,
    /// A network namespace always has one.
    #[error("this network namespace has no link named {LOOPBACK}")]
    NoLoopback,
}

fn hint(err: &io::Error) -> &'static str {
    if err.kind() == io::ErrorKind::PermissionDenied {
        "; the container needs the capability NET_ADMIN"
    } else {
        ""
    }
}

/// Who has an address on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// We added it.
    Ours {
        /// The link that it is on.
        link: String,
    },
    /// It is on a link, and not marked as ours.
    Link {
        /// The link that it is on.
        link: String,
    },
    /// It is on no link, but somebody made a route for it.
    Route {
        /// For people: the link or the gateway.
        through: String,
    },
    /// Free to add.
    Nobody,
}

/// What became of an address that nobody held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Added {
    /// It is now on this link.
    On {
        /// Our own link, or `lo`.
        link: String,
    },
    /// The node does without this family.
    NoFamily {
        /// For people.
        why: String,
    },
}

/// The addresses and the narrow link-local routes of this network namespace at one moment.
#[derive(Debug, Default)]
pub struct Survey {
    links: HashMap<u32, Link>,
    addresses: Vec<Address>,
    routes: Vec<Route>,
    default_links: Vec<u32>,
}

#[derive(Debug)]
struct Link {
    index: u32,
    name: String,
    dummy: bool,
    bridge: bool,
    up: bool,
}

#[derive(Debug)]
struct Address {
    ip: IpAddr,
    link: u32,
    marked: bool,
    message: AddressMessage,
}

#[derive(Debug)]
struct Route {
    destination: IpAddr,
    prefix: u8,
    through: String,
}

impl Survey {
    /// Who has `ip`. An address of ours counts as ours even if somebody else added it too, on another link: we must be able to leave.
    #[must_use]
    pub fn holder(&self, ip: IpAddr) -> Holder {
        let held: Vec<&Address> = self.addresses.iter().filter(|address| address.ip == ip).collect();
        if let Some(ours) = held.iter().find(|address| self.is_ours(address)) {
            return Holder::Ours { link: link_name(&self.links, ours.link) };
        }
        if let Some(theirs) = held.first() {
            return Holder::Link { link: link_name(&self.links, theirs.link) };
        }
        match self.routes.iter().find(|route| made_for(route, ip)) {
            Some(route) => Holder::Route { through: route.through.clone() },
            None => Holder::Nobody,
        }
    }

    /// The link on which somebody else has `ip`, whether we have it too or not.
    #[must_use]
    pub fn theirs(&self, ip: IpAddr) -> Option<String> {
        // Before Linux 5.18 ours have no mark on `lo`, where no other agent has its own.
        let name = |address: &Address| link_name(&self.links, address.link);
        let theirs = |address: &&Address| {
            address.ip == ip && !self.is_ours(address) && !(ip.is_ipv6() && name(address) == LOOPBACK)
        };
        self.addresses.iter().find(theirs).map(name)
    }

    /// The link that our addresses are on, or would be on: ours if it exists, else `lo`.
    #[must_use]
    pub fn home(&self) -> &str {
        own_link(&self.links).map_or(LOOPBACK, |link| &link.name)
    }

    /// Whether `link` is our own, and somebody set it down: its addresses are not served then.
    #[must_use]
    pub fn own_link_is_down(&self, link: &str) -> bool {
        own_link(&self.links).is_some_and(|own| own.name == link && !own.up)
    }

    fn is_ours(&self, address: &Address) -> bool {
        address.marked || own_link(&self.links).is_some_and(|link| link.index == address.link)
    }
}

/// Whether somebody made this route for `ip` or its close neighbours. The wide ones (169.254.0.0/16 on an uplink is what zeroconf adds on
/// many distributions, and fd00:ec2::/32 is all of AWS's local services) say nothing about our addresses.
fn made_for(route: &Route, ip: IpAddr) -> bool {
    let (bits, same, wide) = match (route.destination, ip) {
        (IpAddr::V4(net), IpAddr::V4(ip)) => (32, (net.to_bits() ^ ip.to_bits()).leading_zeros(), 16),
        (IpAddr::V6(net), IpAddr::V6(ip)) => (128, (net.to_bits() ^ ip.to_bits()).leading_zeros(), 32),
        _ => return false,
    };
    route.prefix > wide && u32::from(route.prefix) <= same.min(bits)
}

/// Why this node cannot hold `ip` on `link`, if its family is absent or switched off there.
#[must_use]
pub fn no_family(ip: IpAddr, link: &str) -> Option<String> {
    if ip.is_ipv4() {
        return None;
    }
    match std::fs::read_to_string(Path::new("/proc/sys/net/ipv6/conf").join(link).join("disable_ipv6")) {
        Ok(off) if off.trim() == "0" => None,
        Ok(_) => Some(format!("IPv6 is switched off on {link} (net.ipv6.conf.{link}.disable_ipv6)")),
        Err(_) => Some("this node has no IPv6".to_owned()),
    }
}

/// The addresses of this network namespace, by netlink.
pub struct Kernel {
    netlink: Handle,
}

impl Kernel {
    /// Opens the netlink socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Connect`].
    pub fn connect() -> Result<Self, Error> {
        let (connection, netlink, _) = rtnetlink::new_connection().map_err(Error::Connect)?;
        tokio::spawn(connection);
        Ok(Self { netlink })
    }

    /// Reads links, addresses and routes. The kernel writes these; a pod cannot.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub async fn survey(&self) -> Result<Survey, Error> {
        let mut survey = Survey { links: self.links().await?, ..Survey::default() };
        let addresses = collect("list addresses", self.netlink.address().get().execute()).await?;
        survey.addresses = addresses.into_iter().filter_map(read_address).collect();
        let v4 = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
        for family in [v4, v6] {
            let routes = collect("list routes", self.netlink.route().get(family).execute()).await?;
            survey.default_links.extend(routes.iter().flat_map(uplinks::of_route));
            let routes: Vec<Route> =
                routes.iter().filter_map(|message| read_route(message, &survey.links)).collect();
            survey.routes.extend(routes);
        }
        Ok(survey)
    }

    /// Adds an address that nobody holds, to our own link or to `lo`, with our mark.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn add(&self, ip: IpAddr) -> Result<Added, Error> {
        let (index, link) = self.own_link().await?;
        if let Some(why) = no_family(ip, &link) {
            return Ok(Added::NoFamily { why });
        }
        let mut request = self.netlink.address().add(index, ip, if ip.is_ipv4() { 32 } else { 128 });
        let message = request.message_mut();
        message.attributes.push(AddressAttribute::Protocol(AddressProtocol::Other(PROTOCOL)));
        if ip.is_ipv6() {
            // Nobody else can have the address on this link, so waiting for duplicate address detection is for nothing. Without a prefix
            // route: agents that bring their own route for the address (EKS's does) take any other for a conflict.
            let flags = AddressFlags::Nodad | AddressFlags::Noprefixroute;
            message.attributes.push(AddressAttribute::Flags(flags));
            message.attributes.push(AddressAttribute::CacheInfo(deprecated()));
        } else {
            message.header.scope = AddressScope::Link;
            if link == LOOPBACK {
                message.attributes.push(AddressAttribute::Label(LABEL.to_owned()));
            }
        }
        request.execute().await.map_err(|err| refused(format!("add {ip} to {link}"), err))?;
        Ok(Added::On { link })
    }

    /// Sets our own link up, should somebody have set it down: an address of a link that is down is not served. `lo` is not ours to set.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub async fn raise(&self, link: &str) -> Result<(), Error> {
        if link == LINK { self.own_link().await.map(drop) } else { Ok(()) }
    }

    /// Takes away what [`Kernel::add`] added, and says what that was: addresses of `lo`, or our own link with all that is on it. Routes
    /// are never touched.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn remove(&self) -> Result<Vec<String>, Error> {
        let survey = self.survey().await?;
        let mut removed = Vec::new();
        for address in survey.addresses.iter().filter(|address| address.marked) {
            let what = format!("{} on {}", address.ip, link_name(&survey.links, address.link));
            let request = self.netlink.address().del(address.message.clone());
            request.execute().await.map_err(|err| refused(format!("remove {what}"), err))?;
            removed.push(what);
        }
        if let Some(link) = own_link(&survey.links) {
            let request = self.netlink.link().del(link.index);
            request.execute().await.map_err(|err| refused(format!("remove link {LINK}"), err))?;
            removed.push(format!("link {LINK}"));
        }
        Ok(removed)
    }

    /// Our own link, made if need be and up; `lo` if the kernel has no dummy links.
    async fn own_link(&self) -> Result<(u32, String), Error> {
        let mut links = self.links().await?;
        if !links.values().any(|link| link.name == LINK) {
            match self.netlink.link().add(LinkDummy::new(LINK).build()).execute().await {
                Ok(()) => links = self.links().await?,
                Err(err) => match refused(format!("make link {LINK}"), err) {
                    Error::Refused { source, .. } if source.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                        let lo =
                            links.values().find(|link| link.name == LOOPBACK).ok_or(Error::NoLoopback)?;
                        return Ok((lo.index, lo.name.clone()));
                    }
                    err => return Err(err),
                },
            }
        }
        let link = own_link(&links).ok_or(Error::LinkTaken)?;
        if !link.up {
            let up = LinkUnspec::new_with_index(link.index).up().build();
            let request = self.netlink.link().set(up);
            request.execute().await.map_err(|err| refused(format!("set link {LINK} up"), err))?;
        }
        Ok((link.index, link.name.clone()))
    }

    async fn links(&self) -> Result<HashMap<u32, Link>, Error> {
        let links = collect("list links", self.netlink.link().get().execute()).await?;
        Ok(links.into_iter().map(read_link).map(|link| (link.index, link)).collect())
    }
}

fn own_link(links: &HashMap<u32, Link>) -> Option<&Link> {
    links.values().find(|link| link.name == LINK && link.dummy)
}

fn link_name(links: &HashMap<u32, Link>, index: u32) -> String {
    links.get(&index).map_or_else(|| format!("#{index}"), |link| link.name.clone())
}

/// Valid for ever and preferred never: served, but no source address unless asked for (RFC 6724, rule 3).
fn deprecated() -> CacheInfo {
    let mut lifetime = CacheInfo::default();
    lifetime.ifa_valid = u32::MAX;
    lifetime
}

async fn collect<T>(
    act: &str,
    stream: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Vec<T>, Error> {
    stream.try_collect().await.map_err(|err| refused(act.to_owned(), err))
}

fn refused(act: String, err: rtnetlink::Error) -> Error {
    let source = match err {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    };
    Error::Refused { act, source }
}

fn read_link(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        dummy: false,
        bridge: false,
        up: message.header.flags.contains(LinkFlags::Up),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::LinkInfo(infos) => {
                link.dummy = infos.contains(&LinkInfo::Kind(InfoKind::Dummy));
                link.bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
            }
            _ => {}
        }
    }
    link
}

fn read_address(message: AddressMessage) -> Option<Address> {
    let mut ip = None;
    let mut marked = false;
    for attribute in &message.attributes {
        match attribute {
            // IFA_LOCAL is the node's own end; IFA_ADDRESS the peer's where there is one, and the only one of most IPv6 addresses.
            AddressAttribute::Local(local) => ip = Some(*local),
            AddressAttribute::Address(address) => ip = ip.or(Some(*address)),
            AddressAttribute::Label(label) => marked |= label == LABEL,
            AddressAttribute::Protocol(protocol) => marked |= *protocol == AddressProtocol::Other(PROTOCOL),
            _ => {}
        }
    }
    Some(Address { ip: ip?, link: message.header.index, marked, message })
}

fn read_route(message: &RouteMessage, links: &HashMap<u32, Link>) -> Option<Route> {
    let mut destination = None;
    let mut through = format!("as {:?}", message.header.kind).to_lowercase();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(net)) => destination = Some(IpAddr::V4(*net)),
            RouteAttribute::Destination(RouteAddress::Inet6(net)) => destination = Some(IpAddr::V6(*net)),
            RouteAttribute::Oif(link) => through = format!("through {}", link_name(links, *link)),
            _ => {}
        }
    }
    Some(Route { destination: destination?, prefix: message.header.destination_prefix_length, through })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survey(links: &[(u32, &str, bool)], addresses: &[(&str, u32, bool)], routes: &[(&str, u8)]) -> Survey {
        let link = |&(index, name, dummy): &(u32, &str, bool)| {
            (index, Link { index, name: name.to_owned(), dummy, bridge: false, up: true })
        };
        let address = |&(ip, link, marked): &(&str, u32, bool)| Address {
            ip: ip.parse().unwrap(),
            link,
            marked,
            message: AddressMessage::default(),
        };
        let route = |&(net, prefix): &(&str, u8)| Route {
            destination: net.parse().unwrap(),
            prefix,
            through: "through eth0".to_owned(),
        };
        Survey {
            links: links.iter().map(link).collect(),
            addresses: addresses.iter().map(address).collect(),
            routes: routes.iter().map(route).collect(),
            default_links: Vec::new(),
        }
    }

    fn holder(survey: &Survey, ip: &str) -> Holder {
        survey.holder(ip.parse().unwrap())
    }

    #[test]
    fn whatever_is_on_our_own_link_is_ours() {
        let node = survey(&[(1, "lo", false), (7, LINK, true)], &[("169.254.170.2", 7, false)], &[]);
        assert_eq!(holder(&node, "169.254.170.2"), Holder::Ours { link: LINK.into() });
    }

    #[test]
    fn only_our_own_link_is_ours_to_set_up() {
        let mut node = survey(&[(1, "lo", false), (7, LINK, true)], &[("169.254.170.2", 7, false)], &[]);
        assert!(!node.own_link_is_down(LINK));
        node.links.values_mut().for_each(|link| link.up = false);
        assert!(node.own_link_is_down(LINK) && !node.own_link_is_down("lo"));
    }

    #[test]
    fn a_link_with_our_name_that_is_no_dummy_is_not_ours() {
        let node = survey(&[(7, LINK, false)], &[("169.254.170.2", 7, false)], &[]);
        assert_eq!(holder(&node, "169.254.170.2"), Holder::Link { link: LINK.into() });
    }

    #[test]
    fn on_loopback_only_the_mark_makes_it_ours() {
        let node =
            survey(&[(1, "lo", false)], &[("169.254.170.2", 1, true), ("169.254.170.23", 1, false)], &[]);
        assert_eq!(holder(&node, "169.254.170.2"), Holder::Ours { link: "lo".into() });
        assert_eq!(holder(&node, "169.254.170.23"), Holder::Link { link: "lo".into() });
    }

    #[test]
    fn routes_made_for_the_address_count_and_wide_ones_do_not() {
        let routed = Holder::Route { through: "through eth0".into() };
        for (net, prefix, want) in [
            ("169.254.170.23", 32, &routed),
            ("169.254.170.0", 24, &routed),
            ("169.254.171.0", 24, &Holder::Nobody),
            ("169.254.0.0", 16, &Holder::Nobody),
        ] {
            assert_eq!(
                &holder(&survey(&[], &[], &[(net, prefix)]), "169.254.170.23"),
                want,
                "{net}/{prefix}"
            );
        }
        for (net, prefix, want) in
            [("fd00:ec2::23", 128, &routed), ("fd00:ec2::", 64, &routed), ("fd00:ec2::", 32, &Holder::Nobody)]
        {
            assert_eq!(&holder(&survey(&[], &[], &[(net, prefix)]), "fd00:ec2::23"), want, "{net}/{prefix}");
        }
    }
}
