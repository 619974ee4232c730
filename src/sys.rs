//! The only `unsafe`: calls that no safe binding offers. Each block says why it is sound.
#![allow(unsafe_code, reason = "this module exists to hold it")]

/// Gives freed memory back to the kernel. glibc keeps 9 of 12 MiB after a burst of connections otherwise.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn trim_memory() {
    // SAFETY: malloc_trim(3) takes a number, touches only the allocator's free lists, and is thread-safe.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Other allocators give memory back by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn trim_memory() {}

/// As many descriptors as the node allows: the usual soft limit of 1024 is a quarter of our connections.
///
/// # Errors
/// The kernel's.
pub fn raise_descriptors() -> std::io::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// What the kernel keeps of the packets that opened a TCP connection, as control messages (`IP_PKTOPTIONS` and its
/// IPv6 form): how many bytes of `into` it filled.
///
/// # Errors
/// The kernel's.
#[cfg(target_os = "linux")]
pub fn packet_options(
    socket: std::os::fd::BorrowedFd<'_>,
    ipv6: bool,
    into: &mut [u8],
) -> std::io::Result<usize> {
    use std::os::fd::AsRawFd;
    let (level, option) = if ipv6 {
        (libc::IPPROTO_IPV6, libc::IPV6_2292PKTOPTIONS)
    } else {
        (libc::IPPROTO_IP, IP_PKTOPTIONS)
    };
    let mut length = libc::socklen_t::try_from(into.len()).map_err(std::io::Error::other)?;
    // SAFETY: the descriptor is open for as long as it is borrowed; the kernel writes at most `length` bytes to
    // `into`, which has that many, and the number it wrote to `length`.
    let failed = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, option, into.as_mut_ptr().cast(), &raw mut length)
    };
    if failed == 0 { Ok(length as usize) } else { Err(std::io::Error::last_os_error()) }
}

/// `linux/in.h`; the libc crate has the IPv6 one only.
#[cfg(target_os = "linux")]
const IP_PKTOPTIONS: libc::c_int = 9;
