//! The shared credentials and config files: one profile of them, read anew each time.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::{BaseKeys, process};

/// Settings by which an SDK would get credentials in ways that are not ours. A profile with one of them means another
/// principal than its keys alone would be.
const NOT_OURS: [&str; 8] = [
    "role_arn",
    "source_profile",
    "credential_source",
    "web_identity_token_file",
    "sso_session",
    "sso_start_url",
    "sso_account_id",
    "login_session",
];

/// `AWS_SHARED_CREDENTIALS_FILE`, `AWS_CONFIG_FILE` and `AWS_PROFILE`. A file in a home directory is not looked for: an agent
/// must not act for whoever is logged in.
#[derive(Clone, Debug)]
pub(super) struct Files {
    pub credentials: Option<PathBuf>,
    pub config: Option<PathBuf>,
    pub profile: String,
}

/// What a profile gives.
pub(super) enum Profile {
    Keys(BaseKeys),
    Process(process::Command),
}

impl fmt::Display for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paths: Vec<_> = self.paths().map(|path| path.display().to_string()).collect();
        write!(f, "profile {} of {}", self.profile, paths.join(" and "))
    }
}

impl Files {
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        [&self.credentials, &self.config].into_iter().flatten().map(PathBuf::as_path)
    }

    /// The profile as the files have it now. They are small, and local: a Secret or a ConfigMap, in memory.
    pub(super) fn read(&self) -> Result<Profile, String> {
        let mut settings = HashMap::new();
        // The credentials file wins, as in the SDKs.
        let config = (self.config.as_ref(), format!("profile {}", self.profile));
        for (path, section) in [config, (self.credentials.as_ref(), self.profile.clone())] {
            let Some(path) = path else { continue };
            let text = std::fs::read_to_string(path).map_err(|err| format!("{}: {err}", path.display()))?;
            settings.extend(section_of(&text, &section));
            if section == "profile default" {
                settings.extend(section_of(&text, "default"));
            }
        }
        self.profile(settings)
    }

    fn profile(&self, mut settings: HashMap<String, String>) -> Result<Profile, String> {
        if let Some(name) = NOT_OURS.iter().find(|name| settings.contains_key(**name)) {
            return Err(format!(
                "it has {name}, which the agent does not do: write access keys or a credential_process there"
            ));
        }
        let mut take = |name: &str| settings.remove(name).filter(|value| !value.is_empty());
        let (id, secret) = (take("aws_access_key_id"), take("aws_secret_access_key"));
        match (id, secret, take("credential_process")) {
            (Some(id), Some(secret), None) => {
                BaseKeys::new(id, secret, take("aws_session_token")).map(Profile::Keys)
            }
            (None, None, Some(command)) => process::Command::parse(&command).map(Profile::Process),
            (None, None, None) => {
                Err("it has neither aws_access_key_id and aws_secret_access_key nor credential_process"
                    .into())
            }
            (_, _, Some(_)) => Err("it has access keys and a credential_process: which one?".into()),
            (Some(_), None, None) => Err("it has aws_access_key_id and no aws_secret_access_key".into()),
            (None, Some(_), None) => Err("it has aws_secret_access_key and no aws_access_key_id".into()),
        }
    }
}

/// The settings of `[SECTION]`. What is indented belongs to the setting above it, which is none of ours.
/// <https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html>
fn section_of(text: &str, section: &str) -> HashMap<String, String> {
    let mut settings = HashMap::new();
    let mut inside = false;
    for line in text.lines() {
        if let Some(name) = line.trim_end().strip_prefix('[') {
            let name = name.split(']').next().unwrap_or_default();
            inside = name.split_whitespace().eq(section.split_whitespace());
        } else if inside
            && !line.starts_with([' ', '\t', '#', ';'])
            && let Some((name, value)) = line.split_once('=')
        {
            settings.insert(name.trim().to_ascii_lowercase(), uncommented(value).trim().to_owned());
        }
    }
    settings
}

fn uncommented(value: &str) -> &str {
    let comment = [" #", " ;", "\t#", "\t;"].iter().filter_map(|mark| value.find(mark)).min();
    &value[..comment.unwrap_or(value.len())]
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn files(credentials: &str, config: &str, profile: &str) -> (tempfile::TempDir, Files) {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            (!text.is_empty()).then_some(path)
        };
        let (credentials, config) = (write("credentials", credentials), write("config", config));
        let files = Files { credentials, config, profile: profile.into() };
        (folder, files)
    }

    fn keys(credentials: &str, config: &str, profile: &str) -> Result<(String, String), String> {
        let (_folder, files) = files(credentials, config, profile);
        match files.read()? {
            Profile::Keys(keys) => {
                Ok((keys.keys.access_key_id, keys.keys.secret_access_key.expose_secret().to_owned()))
            }
            Profile::Process(command) => Ok((format!("{command:?}"), String::new())),
        }
    }

    #[test]
    fn a_profile_is_read_as_the_sdks_read_it() {
        let text = "# mine\n[default]\naws_access_key_id=AKIA1\naws_secret_access_key = a/b+c== # old\n\
                    s3 =\n  aws_access_key_id = NOT\n[ other ]\naws_access_key_id = AKIA2\naws_secret_access_key = x\n";
        assert_eq!(keys(text, "", "default").unwrap(), ("AKIA1".into(), "a/b+c==".into()));
        assert_eq!(keys(text, "", "other").unwrap(), ("AKIA2".into(), "x".into()));
        let config = "[profile other]\naws_access_key_id = AKIA3\naws_secret_access_key = y\n[default]\n\
                      aws_access_key_id = AKIA4\naws_secret_access_key = z\n";
        assert_eq!(keys("", config, "other").unwrap().0, "AKIA3");
        assert_eq!(keys("", config, "default").unwrap().0, "AKIA4");
        assert_eq!(keys(text, config, "other").unwrap(), ("AKIA2".into(), "x".into()), "credentials win");
    }

    #[test]
    fn a_profile_that_means_another_principal_or_two_is_refused() {
        let both = "[default]\naws_access_key_id = AKIA1\naws_secret_access_key = hidden\n";
        for (text, says) in [
            (format!("{both}role_arn = arn:aws:iam::1:role/x\n"), "role_arn"),
            (format!("{both}credential_process = /bin/x\n"), "which one"),
            ("[default]\naws_access_key_id = AKIA1\n".into(), "no aws_secret_access_key"),
            ("[default]\naws_secret_access_key = hidden\n".into(), "no aws_access_key_id"),
            ("[another]\naws_access_key_id = AKIA1\n".into(), "neither"),
            ("[default]\nsso_session = x\n".into(), "sso_session"),
            ("[default]\naws_access_key_id = A\naws_secret_access_key = hidden words\n".into(), "space"),
        ] {
            let why = keys(&text, "", "default").unwrap_err();
            assert!(why.contains(says) && !why.contains("hidden"), "{why}");
        }
    }

    #[test]
    fn a_file_that_is_named_must_be_there() {
        let (folder, files) = files("[default]\n", "", "default");
        drop(folder);
        assert!(files.read().err().unwrap().contains("credentials: "));
    }
}
