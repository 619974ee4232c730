//! The directory of the agent's Unix socket: made by `net install`, because the agent itself starts without any right to make or chown it.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::server::imds::token::KEY_FILE;

/// Why the run directory is not as it must be.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// A symbolic link or a file stands there; following it would hand somebody else's directory to the agent.
    #[error("{} is not a directory; remove it", .0.display())]
    NotADirectory(PathBuf),
    /// The kernel refused; the usual cause is a container without the capability.
    #[error("cannot {act}: {source}; the container needs the capability CHOWN and a writable {}", path.display())]
    Refused { act: &'static str, path: PathBuf, source: io::Error },
}

/// Makes `path` a directory of `uid` with mode 0700, so that only the agent (and root) can reach its socket.
pub(super) fn prepare(path: &Path, uid: u32) -> Result<(), Error> {
    let refused = |act| move |source| Error::Refused { act, path: path.to_owned(), source };
    match fs::create_dir(path) {
        Err(err) if err.kind() != io::ErrorKind::AlreadyExists => return Err(refused("make it")(err)),
        Ok(()) | Err(_) => {}
    }
    // Root owns the parent: nobody can swap the entry between this look and the calls below.
    let found = fs::symlink_metadata(path).map_err(refused("look at it"))?;
    if !found.is_dir() {
        return Err(Error::NotADirectory(path.to_owned()));
    }
    if found.mode() & 0o7777 != 0o700 {
        // Only the owner may change the mode without CAP_FOWNER, and we come with CHOWN alone: own it first.
        std::os::unix::fs::lchown(path, Some(nix::unistd::geteuid().as_raw()), None)
            .map_err(refused("own it"))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(refused("set mode 0700"))?;
    }
    std::os::unix::fs::lchown(path, Some(uid), None).map_err(refused("give it to the agent"))
}

/// Removes `path` with the sockets and the key in it; says if it was there. Anything else in it is not ours: then it stays, and that is an
/// error.
pub(super) fn remove(path: &Path) -> Result<bool, Error> {
    let refused = |act| move |source| Error::Refused { act, path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Err(Error::NotADirectory(path.to_owned())),
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(err) => return Err(refused("look at it")(err)),
    }
    // Its mode lets the owner in alone, and we come without CAP_DAC_OVERRIDE.
    std::os::unix::fs::lchown(path, Some(nix::unistd::geteuid().as_raw()), None)
        .map_err(refused("own it"))?;
    for entry in fs::read_dir(path).map_err(refused("read it"))? {
        let entry = entry.map_err(refused("read it"))?;
        // The key, and what an agent that was killed while it made one left of it.
        let key = entry.file_name().to_string_lossy().starts_with(KEY_FILE);
        if key || entry.file_type().map_err(refused("read it"))?.is_socket() {
            fs::remove_file(entry.path()).map_err(refused("empty it"))?;
        }
    }
    fs::remove_dir(path).map_err(refused("remove it"))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_others_may_enter_is_closed() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("rolecall");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        prepare(&path, nix::unistd::geteuid().as_raw()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);
    }

    #[test]
    fn what_is_removed_is_a_directory_of_sockets_and_a_key_and_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("rolecall");
        prepare(&path, nix::unistd::geteuid().as_raw()).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path.join("agent.sock")).unwrap();
        crate::server::imds::token::Key::load_or_make(&path).unwrap();
        fs::write(path.join("imds.key.0123456789abcdef"), "half a ke").unwrap();
        fs::write(path.join("foreign"), "").unwrap();
        assert!(matches!(remove(&path), Err(Error::Refused { act: "remove it", .. })));
        fs::remove_file(path.join("foreign")).unwrap();
        assert!(remove(&path).unwrap());
        assert!(!path.exists());
        assert!(!remove(&path).unwrap());
    }

    #[test]
    fn a_symbolic_link_is_not_followed() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("rolecall");
        std::os::unix::fs::symlink("/etc", &path).unwrap();
        assert!(matches!(prepare(&path, 0), Err(Error::NotADirectory(_))));
    }
}
