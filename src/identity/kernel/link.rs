//! Questions to the kernel over one netlink socket that stays open: a link, a namespace's id, a bridge's port.
//!
//! Each is a single object, answered before `send` returns: microseconds, on any thread, without any right.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;

const NLMSG_ERROR: u16 = libc::NLMSG_ERROR as u16;
/// `linux/if_link.h`: statistics are most of an answer, and nobody reads them here.
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
/// `linux/net_namespace.h`
const NETNSA_NSID: u16 = 1;
const NETNSA_PID: u16 = 2;
const IFLA_INFO_KIND: u16 = 1;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_MASTER: u16 = 9;
const AF_BRIDGE: u8 = libc::AF_BRIDGE as u8;

/// A link of the agent's own namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) name: String,
    /// `veth`, `netkit`, `bridge`; empty for `lo` and hardware.
    pub(super) kind: String,
    /// The id of the namespace at the other end. An id of the kernel's that is given out again at once when its
    /// namespace goes: good for comparing now, never for remembering.
    pub(super) peer: Option<i32>,
}

impl Link {
    /// Whether it is one end of two, of which the other may be in a pod.
    pub(super) fn is_cable(&self) -> bool {
        matches!(&*self.kind, "veth" | "netkit")
    }
}

/// The netlink socket of one thread.
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    question: Vec<u8>,
    buffer: Box<[u8]>,
}

impl Netlink {
    /// A socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        // Connected to the kernel: nobody else's message gets in.
        connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(1, 0))?;
        Ok(Self { socket, sequence: 0, question: Vec::new(), buffer: vec![0; 32 * 1024].into() })
    }

    /// The link with this index, if it is still there.
    pub(super) fn link(&mut self, index: u32) -> io::Result<Option<Link>> {
        let Some(attributes) = self.link_attributes(index)? else { return Ok(None) };
        let mut link = Link::default();
        for (kind, value) in attributes {
            match kind {
                libc::IFLA_IFNAME => link.name = text(value),
                libc::IFLA_LINK_NETNSID => link.peer = word(value).map(i32::from_ne_bytes),
                libc::IFLA_LINKINFO => {
                    let kind = self::attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                    link.kind = kind.map(|(_, value)| text(value)).unwrap_or_default();
                }
                _ => {}
            }
        }
        Ok(Some(link))
    }

    /// [`Link::peer`] alone, if the link is still there.
    pub(super) fn peer(&mut self, index: u32) -> io::Result<Option<i32>> {
        let Some(mut attributes) = self.link_attributes(index)? else { return Ok(None) };
        let peer = attributes.find(|(kind, _)| *kind == libc::IFLA_LINK_NETNSID);
        Ok(peer.and_then(|(_, value)| word(value)).map(i32::from_ne_bytes))
    }

    fn link_attributes(&mut self, index: u32) -> io::Result<Option<impl Iterator<Item = (u16, &[u8])>>> {
        // ifinfomsg: family, padding, type, index, flags, change.
        let mut body = [0; 16];
        body[4..8].copy_from_slice(&index.to_ne_bytes());
        let mask = RTEXT_FILTER_SKIP_STATS.to_ne_bytes();
        let answer = self.ask(libc::RTM_GETLINK, &body, &[(libc::IFLA_EXT_MASK, &mask)])?;
        Ok(answer.map(|answer| attributes(answer.get(16..).unwrap_or_default())))
    }

    /// The id of the network namespace that process `pid` is in; `None` if it has none here, or the process went.
    pub(super) fn namespace_of(&mut self, pid: u32) -> io::Result<Option<i32>> {
        let Some(answer) = self.ask(libc::RTM_GETNSID, &[0; 4], &[(NETNSA_PID, &pid.to_ne_bytes())])? else {
            return Ok(None);
        };
        let id = attributes(answer.get(4..).unwrap_or_default()).find(|(kind, _)| *kind == NETNSA_NSID);
        Ok(id.and_then(|(_, value)| word(value)).map(i32::from_ne_bytes).filter(|id| *id >= 0))
    }

    /// The port of bridge `bridge` behind which `address` is now: through its neighbour entry and the bridge's
    /// forwarding entry. Pods write both, by what they send: this only says where to look.
    pub(super) fn port(&mut self, bridge: u32, address: IpAddr) -> io::Result<Option<u32>> {
        // ndmsg: family, padding, index, state, flags, type.
        let mut body = [0; 12];
        body[4..8].copy_from_slice(&bridge.to_ne_bytes());
        let (family, octets) = match address {
            IpAddr::V4(v4) => (libc::AF_INET, v4.octets().to_vec()),
            IpAddr::V6(v6) => (libc::AF_INET6, v6.octets().to_vec()),
        };
        body[0] = family as u8;
        let Some(answer) = self.ask(libc::RTM_GETNEIGH, &body, &[(NDA_DST, &octets)])? else {
            return Ok(None);
        };
        let mac = attributes(answer.get(12..).unwrap_or_default()).find(|(kind, _)| *kind == NDA_LLADDR);
        let Some(mac) = mac.map(|(_, value)| value.to_vec()) else { return Ok(None) };
        let mut body = [0; 12];
        body[0] = AF_BRIDGE;
        let bridge = bridge.to_ne_bytes();
        let Some(answer) =
            self.ask(libc::RTM_GETNEIGH, &body, &[(NDA_LLADDR, &mac), (NDA_MASTER, &bridge)])?
        else {
            return Ok(None);
        };
        Ok(answer.get(4..8).and_then(word).map(u32::from_ne_bytes))
    }

    /// One question, and what follows the header of its answer; `None` if there is no such object.
    fn ask(&mut self, kind: u16, body: &[u8], ask: &[(u16, &[u8])]) -> io::Result<Option<&[u8]>> {
        self.sequence = self.sequence.wrapping_add(1);
        let message = &mut self.question;
        message.clear();
        message.resize(16, 0);
        message.extend_from_slice(body);
        for (kind, value) in ask {
            message.extend_from_slice(&(value.len() as u16 + 4).to_ne_bytes());
            message.extend_from_slice(&kind.to_ne_bytes());
            message.extend_from_slice(value);
            message.resize(message.len().next_multiple_of(4), 0);
        }
        let length = message.len() as u32;
        message[..4].copy_from_slice(&length.to_ne_bytes());
        message[4..6].copy_from_slice(&kind.to_ne_bytes());
        message[6..8].copy_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
        message[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        send(self.socket.as_raw_fd(), message, MsgFlags::empty())?;
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC)?;
            let answer = self.buffer.get(..length).and_then(Answer::read);
            let Some(Answer { kind, sequence, end }) = answer else {
                return Err(io::Error::other("a netlink answer was cut short"));
            };
            if sequence != self.sequence {
                continue; // An older question's, which was given up.
            }
            let body = &self.buffer[16..end];
            if kind != NLMSG_ERROR {
                return Ok(Some(body));
            }
            let errno = body.get(..4).and_then(word).map_or(libc::EPROTO, |code| -i32::from_ne_bytes(code));
            return match errno {
                libc::ENODEV | libc::ENOENT | libc::ESRCH => Ok(None),
                _ => Err(io::Error::from_raw_os_error(errno)),
            };
        }
    }
}

/// The header of an answer.
pub(super) struct Answer {
    kind: u16,
    sequence: u32,
    /// Where the message ends.
    pub(super) end: usize,
}

impl Answer {
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let end = u32::from_ne_bytes(word(bytes.get(..4)?)?) as usize;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let sequence = u32::from_ne_bytes(word(bytes.get(8..12)?)?);
        (16..=bytes.len()).contains(&end).then_some(Self { kind, sequence, end })
    }
}

/// Type and value of each attribute; ends at the first that does not fit.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        // The two highest bits say how the value is written.
        Some((kind & 0x3fff, value))
    })
}

fn word(bytes: &[u8]) -> Option<[u8; 4]> {
    bytes.try_into().ok()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_end_at_the_first_that_does_not_fit() {
        let good = [8, 0, 37, 0, 5, 0, 0, 0, 5, 0, 3, 0, b'x', 0, 0, 0];
        let read =
            |bytes: &[u8]| attributes(bytes).map(|(kind, value)| (kind, value.to_vec())).collect::<Vec<_>>();
        if cfg!(target_endian = "little") {
            assert_eq!(read(&good), [(37, vec![5, 0, 0, 0]), (3, vec![b'x'])]);
            // Nested ones say so in the highest bit.
            assert_eq!(read(&[4, 0, 18, 0x80]), [(18, vec![])]);
        }
        for bad in [&[][..], &[0; 4], &[3, 0, 1, 0], &[255, 255, 1, 0, 0], &[8, 0, 1]] {
            assert_eq!(read(bad), [], "{bad:?}");
        }
    }

    #[test]
    fn our_own_loopback_is_a_link_without_a_peer_and_absent_things_are_none() {
        let mut netlink = Netlink::open().unwrap();
        let lo = netlink.link(1).unwrap().unwrap();
        assert_eq!(lo, Link { name: "lo".into(), kind: String::new(), peer: None });
        assert_eq!(netlink.link(i32::MAX as u32).unwrap(), None);
        assert_eq!(netlink.namespace_of(i32::MAX as u32).unwrap(), None);
        assert_eq!(netlink.port(1, "192.0.2.1".parse().unwrap()).unwrap(), None);
    }
}
