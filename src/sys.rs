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

/// No core dump, no ptrace by our own user, no new privileges: a thief of this process must come from root.
///
/// # Errors
/// The kernel's, for the first of them that it refuses.
#[cfg(target_os = "linux")]
pub fn harden() -> std::io::Result<()> {
    use nix::sys::{prctl, resource};
    resource::setrlimit(resource::Resource::RLIMIT_CORE, 0, 0)?;
    prctl::set_dumpable(false)?;
    prctl::set_no_new_privs()?;
    Ok(())
}

/// Elsewhere the agent only builds; it runs on Linux nodes.
///
/// # Errors
/// Never.
#[cfg(not(target_os = "linux"))]
pub fn harden() -> std::io::Result<()> {
    Ok(())
}
