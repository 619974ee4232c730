//! A mounted folder as it is at one moment: Kubernetes puts another one in its place when a Secret changes.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret as _, SecretSlice};

/// A key or a chain has a few KiB, and a Secret 1 MiB at most.
const MAX_FILE: u64 = 64 * 1024;
/// More keys than a JWKS could sensibly have.
const MAX_FILES: usize = 32;
/// What the kubelet's link to the current content is called.
/// <https://github.com/kubernetes/kubernetes/blob/v1.36.0/pkg/volume/util/atomic_writer.go>
const CURRENT: &str = "..data";
/// A folder that changes faster than it is read is not the kubelet's.
const TRIES: usize = 3;

/// Why a folder cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system says no.
    #[error("{}", path.display())]
    Read {
        /// The folder, or the file in it.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Not what such a folder holds.
    #[error("{} has more than {MAX_FILES} such files, or one of more than {MAX_FILE} bytes", .0.display())]
    TooMuch(PathBuf),
    /// It was changed again and again.
    #[error("{} changes while it is read", .0.display())]
    Unsteady(PathBuf),
}

/// The contents of some files of one folder, by name.
pub struct Files(BTreeMap<String, SecretSlice<u8>>);

impl Files {
    /// Reads those files of `folder` whose name is `wanted`. All are of one moment: a new key without its certificate would
    /// be of no use.
    ///
    /// # Errors
    /// [`Error`]
    pub fn read(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<Self, Error> {
        for _ in 0..TRIES {
            let current = || fs::read_link(folder.join(CURRENT)).ok();
            let before = current();
            let read = Self::read_once(folder, &wanted);
            if current() == before {
                return read;
            }
        }
        Err(Error::Unsteady(folder.to_owned()))
    }

    fn read_once(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<Self, Error> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            |source| Error::Read { path, source }
        };
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(folder).map_err(failed(folder))? {
            let entry = entry.map_err(failed(folder))?;
            let Some(name) = entry.file_name().to_str().filter(|name| wanted(name)).map(str::to_owned) else {
                continue;
            };
            let path = entry.path();
            let length = fs::metadata(&path).map_err(failed(&path))?.len();
            if length > MAX_FILE || files.len() >= MAX_FILES {
                return Err(Error::TooMuch(folder.to_owned()));
            }
            files.insert(name, fs::read(&path).map_err(failed(&path))?.into());
        }
        Ok(Self(files))
    }

    /// The content of one file.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.get(name).map(|content| content.expose_secret())
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, content)| (name.as_str(), content.expose_secret()))
    }

    /// Is it all the same?
    pub fn same_as(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}
