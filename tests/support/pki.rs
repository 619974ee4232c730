//! A certificate authority of a test's own, in a folder that goes with it; `openssl` does the signing.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Signs whatever it is told to; nobody else has its key.
pub(crate) struct Authority(TempDir);

/// A certificate chain and its key, as files.
#[derive(Clone)]
pub(crate) struct Leaf {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let authority = Self(tempfile::tempdir().expect("there is room"));
        authority.openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=private \
             -addext basicConstraints=critical,CA:TRUE -keyout ca.key -out ca.pem",
        );
        authority
    }

    /// What `--sts-ca-bundle` wants.
    pub(crate) fn bundle(&self) -> PathBuf {
        self.0.path().join("ca.pem")
    }

    /// A good certificate for `names`, such as `DNS:sts.internal,IP:127.0.0.1`.
    pub(crate) fn leaf(&self, names: &str) -> Leaf {
        self.leaf_until(names, "20991231235959Z")
    }

    /// One that ends then, YYYYMMDDHHMMSSZ.
    pub(crate) fn leaf_until(&self, names: &str, end: &str) -> Leaf {
        let number = fastrand::u64(..);
        std::fs::write(self.0.path().join(format!("{number}.ext")), format!("subjectAltName={names}\n"))
            .expect("the folder is ours");
        std::fs::write(self.0.path().join("index"), "").expect("the folder is ours");
        std::fs::write(self.0.path().join("ca.conf"), CA).expect("the folder is ours");
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=sts -keyout {number}.key -out {number}.csr"
        ));
        self.openssl(&format!(
            "ca -config ca.conf -batch -notext -startdate 20200101000000Z -enddate {end} \
             -extfile {number}.ext -in {number}.csr -out {number}.pem"
        ));
        Leaf {
            cert: self.0.path().join(format!("{number}.pem")),
            key: self.0.path().join(format!("{number}.key")),
        }
    }

    fn openssl(&self, args: &str) {
        let output =
            Command::new("openssl").args(args.split_whitespace()).current_dir(self.0.path()).output();
        let output = output.expect("openssl runs");
        assert!(output.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Puts `from` in `to`'s place at once, as a kubelet does with a mounted Secret.
pub(crate) fn put(from: &Path, to: &Path) {
    let new = to.with_extension("new");
    std::fs::copy(from, &new).expect("there is room");
    std::fs::rename(new, to).expect("the folder is ours");
}

const CA: &str = "[ca]
default_ca = own
[own]
database = index
new_certs_dir = .
certificate = ca.pem
private_key = ca.key
default_md = sha256
policy = any
unique_subject = no
rand_serial = yes
[any]
commonName = supplied
";
