//! What the kernel knows of an accepted socket: the link that the connection came in by, and where it was sent to.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, setsockopt, sockopt};

use crate::sys;

/// `struct cmsghdr`: length (a machine word, itself included), level, type.
const HEADER: usize = size_of::<usize>() + 8;

/// The index of the link by which the connection came in. Asked for on the accepted socket, so it is the link of
/// the handshake's last packet; later ones do not change it.
///
/// # Errors
/// The kernel's, also where it keeps no such thing.
pub(super) fn ingress(socket: impl AsFd, local: SocketAddr) -> io::Result<u32> {
    let mut options = [0; 256];
    if local.is_ipv4() {
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    }
    let length = sys::packet_options(socket.as_fd(), local.is_ipv6(), &mut options)?;
    let index = options.get(..length).and_then(packet_info);
    index.filter(|index| *index != 0).ok_or_else(|| io::Error::other("the kernel names no ingress link"))
}

/// The link index in the first `IP_PKTINFO` or `IPV6_PKTINFO` of these control messages.
pub(super) fn packet_info(mut messages: &[u8]) -> Option<u32> {
    loop {
        let (length, rest) = messages.split_first_chunk::<{ size_of::<usize>() }>()?;
        let (level, rest) = rest.split_first_chunk::<4>()?;
        let (kind, _) = rest.split_first_chunk::<4>()?;
        let length = usize::from_ne_bytes(*length);
        let data = messages.get(HEADER..length)?;
        // in_pktinfo begins with the index; in6_pktinfo has it after the address.
        let index = match (i32::from_ne_bytes(*level), i32::from_ne_bytes(*kind)) {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => data.get(..4),
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO | libc::IPV6_2292PKTINFO) => data.get(16..20),
            _ => None,
        };
        if let Some(index) = index {
            return Some(u32::from_ne_bytes(index.try_into().ok()?));
        }
        messages = messages.get(length.next_multiple_of(size_of::<usize>())..)?;
    }
}

/// Where the caller sent the connection: before our own redirect (80 to 9902) rewrote it, if it did.
///
/// # Errors
/// The kernel's, but for "this connection was not tracked".
pub(super) fn destination(socket: impl AsFd, local: SocketAddr) -> io::Result<SocketAddr> {
    let original = if local.is_ipv4() {
        getsockopt(&socket, sockopt::OriginalDst).map(|at| {
            let address = Ipv4Addr::from(u32::from_be(at.sin_addr.s_addr));
            SocketAddr::new(address.into(), u16::from_be(at.sin_port))
        })
    } else {
        getsockopt(&socket, sockopt::Ip6tOriginalDst).map(|at| {
            SocketAddr::new(Ipv6Addr::from(at.sin6_addr.s6_addr).into(), u16::from_be(at.sin6_port))
        })
    };
    match original {
        Err(Errno::ENOENT | Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => Ok(local),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
        let mut message = (HEADER + data.len()).to_ne_bytes().to_vec();
        message.extend_from_slice(&level.to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(data);
        message.resize(message.len().next_multiple_of(size_of::<usize>()), 0);
        message
    }

    #[test]
    fn the_link_is_found_in_either_familys_message_and_behind_others() {
        let v4 = message(libc::IPPROTO_IP, libc::IP_PKTINFO, &[[7, 0, 0, 0], [0; 4], [0; 4]].concat());
        let v6 = message(
            libc::IPPROTO_IPV6,
            libc::IPV6_PKTINFO,
            &[&[0xfd; 16], &7_u32.to_ne_bytes()[..]].concat(),
        );
        let other = message(libc::IPPROTO_IP, libc::IP_TTL, &64_u32.to_ne_bytes());
        let seven = Some(u32::from_ne_bytes([7, 0, 0, 0]));
        assert_eq!(packet_info(&v4), seven);
        assert_eq!(packet_info(&v6), Some(7));
        assert_eq!(packet_info(&[other.clone(), v4.clone()].concat()), seven);
        assert_eq!(packet_info(&other), None);
        for cut in 0..HEADER + 4 {
            assert_eq!(packet_info(&v4[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn lengths_that_do_not_fit_end_it() {
        for length in [0, 1, HEADER - 1, usize::MAX - 1, usize::MAX] {
            let mut bytes = message(libc::IPPROTO_IP, libc::IP_PKTINFO, &[7; 12]);
            bytes[..size_of::<usize>()].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(packet_info(&bytes), None, "{length}");
        }
    }
}
