//! The emulator's file: issuers, roles, users and faults; checked once, all mistakes reported together.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use super::arn::{RoleArn, UserArn, is_account};
use super::faults::Fault;
use super::jwt::Jwks;
use super::keys::KeySource;
use super::policy::TrustPolicy;
use crate::oidc::documents::ApiServer;
use crate::telemetry::in_full;

/// What AWS allows a role's `MaxSessionDuration` to be.
const MAX_SESSION: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(3600)..=Duration::from_secs(43_200);

/// The emulated account or accounts, as the file says or as code builds them.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// OpenID Connect identity providers: whose tokens count.
    pub issuers: Vec<IssuerConfig>,
    /// Roles and who may assume them.
    pub roles: Vec<RoleConfig>,
    /// Every role that is not in `roles` exists too, and trusts every subject of these issuers and its whole account: for clusters
    /// on a laptop, where nobody has made the roles. Never where keys are worth something.
    pub any_role: bool,
    /// IAM users with access keys, for AssumeRole without a token.
    pub users: Vec<UserConfig>,
    /// Faults that are in force from the start.
    pub faults: Vec<Fault>,
}

/// One identity provider. Its keys come from `jwks`, from `jwks_file`, or (with neither) from discovery.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IssuerConfig {
    /// The `iss` of its tokens: `https://…`, exactly.
    pub url: String,
    /// The API server of `--kubeconfig`, or in a pod the pod's own: it is asked for `url` and for its keys.
    pub api_server: bool,
    /// Which kubeconfig that is; set by the command, not in the file.
    #[serde(skip)]
    pub kubeconfig: Option<PathBuf>,
    /// The `aud` values that it accepts (IAM calls them client ids). Default: `sts.amazonaws.com`.
    pub audiences: Option<Vec<String>>,
    /// The accounts that have this provider. Default: every account that has a role in the file.
    pub accounts: Option<Vec<String>>,
    /// The JWKS itself, as YAML or as JSON text.
    pub jwks: Option<serde_json::Value>,
    /// A file with the JWKS; read again when a token names a key that it did not have.
    pub jwks_file: Option<PathBuf>,
    /// Where the discovery document is. Default: `<url>/.well-known/openid-configuration`.
    pub discovery_url: Option<String>,
    /// The certificates (PEM) to trust for discovery. Default: those of the system.
    pub ca_file: Option<PathBuf>,
}

/// One role.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RoleConfig {
    /// `arn:aws:iam::ACCOUNT:role/NAME`
    pub arn: String,
    /// `1h` to `12h`. Default: `1h`, as in AWS.
    pub max_session_duration: Option<String>,
    /// The trust policy as IAM has it: as YAML, or as JSON text.
    pub trust_policy: serde_json::Value,
}

/// One user, with the access key that signs its calls.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserConfig {
    /// `arn:aws:iam::ACCOUNT:user/NAME`
    pub arn: String,
    /// The access key's id.
    pub access_key_id: String,
    /// The access key's secret.
    #[serde(deserialize_with = "secret")]
    pub secret_access_key: SecretString,
}

/// Everything that is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub struct Mistakes(pub Vec<String>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

/// A checked provider.
pub(crate) struct Provider {
    pub url: String,
    pub audiences: Vec<String>,
    /// None: every account.
    pub accounts: Option<Vec<String>>,
    pub keys: KeySource,
}

impl Provider {
    /// Does this account have the provider?
    pub(crate) fn is_of(&self, account: &str) -> bool {
        self.accounts.as_ref().is_none_or(|accounts| accounts.iter().any(|own| own == account))
    }

    /// The URL without its scheme: in the provider's ARN and in condition keys.
    pub(crate) fn name(&self) -> &str {
        issuer_name(&self.url)
    }
}

/// A checked role.
#[derive(Debug, Clone)]
pub(crate) struct Role {
    pub arn: RoleArn,
    pub max_session: Duration,
    pub trust: TrustPolicy,
}

/// A checked user.
#[derive(Debug)]
pub(crate) struct User {
    pub arn: UserArn,
    pub access_key_id: String,
    pub secret: SecretString,
}

/// A checked configuration.
pub(crate) struct Account {
    pub providers: Vec<Provider>,
    pub roles: Vec<Role>,
    pub any_role: bool,
    pub users: Vec<User>,
    pub faults: Vec<Fault>,
}

impl Config {
    /// Reads the YAML file at `path`. Paths in it are relative to it.
    ///
    /// # Errors
    /// The file cannot be read, or is not such a file. What it says is checked by
    /// [`Emulator::bind`](super::Emulator::bind).
    pub fn read(path: &Path) -> Result<Self, Mistakes> {
        let here = |message: String| Mistakes(vec![format!("{}: {message}", path.display())]);
        let text = std::fs::read_to_string(path).map_err(|err| here(err.to_string()))?;
        // Without the snippet: it shows the lines around the mistake, and one of them may be a secret key.
        let mut config: Self =
            serde_saphyr::from_str(&text).map_err(|err| here(err.without_snippet().to_string()))?;
        let beside = path.parent().unwrap_or(Path::new(""));
        for issuer in &mut config.issuers {
            for file in [&mut issuer.jwks_file, &mut issuer.ca_file].into_iter().flatten() {
                *file = beside.join(&*file);
            }
        }
        Ok(config)
    }

    /// Asks API servers whose issuer is not known yet.
    pub(crate) async fn ask_api_servers(&mut self) -> Result<(), Mistakes> {
        for issuer in self.issuers.iter_mut().filter(|issuer| issuer.api_server && issuer.url.is_empty()) {
            let asked = ApiServer::ask(issuer.kubeconfig.as_deref()).await;
            let asked = asked
                .map_err(|err| Mistakes(vec![format!("issuer of the API server: {}", in_full(&err))]))?;
            issuer.url = asked.issuer;
        }
        Ok(())
    }

    /// Checks everything and reads the files it names.
    pub(crate) fn check(self) -> Result<Account, Mistakes> {
        let mut mistakes = Vec::new();
        let names: Vec<String> =
            self.issuers.iter().map(|issuer| issuer_name(&issuer.url).to_owned()).collect();
        let mut roles: Vec<Role> = Vec::new();
        for role in &self.roles {
            match role.check(&names) {
                Ok(role) if roles.iter().any(|other| other.arn == role.arn) => {
                    mistakes.push(format!("role {}: there are two of them", role.arn));
                }
                Ok(role) => roles.push(role),
                Err(wrong) => mistakes.extend(wrong),
            }
        }
        let mut accounts: Vec<String> = roles.iter().map(|role| role.arn.account.clone()).collect();
        accounts.sort();
        accounts.dedup();
        let mut providers: Vec<Provider> = Vec::new();
        for issuer in self.issuers {
            match issuer.check(&accounts, self.any_role) {
                Ok(provider) if providers.iter().any(|other| other.url == provider.url) => {
                    mistakes.push(format!("issuer {}: there are two of them", provider.url));
                }
                Ok(provider) => providers.push(provider),
                Err(wrong) => mistakes.extend(wrong),
            }
        }
        let mut users: Vec<User> = Vec::new();
        for user in self.users {
            match user.check() {
                Ok(user) if users.iter().any(|other| other.access_key_id == user.access_key_id) => {
                    mistakes.push(format!("user {}: another user has the same access_key_id", user.arn.text));
                }
                Ok(user) => users.push(user),
                Err(wrong) => mistakes.extend(wrong),
            }
        }
        for (number, fault) in self.faults.iter().enumerate() {
            if let Err(wrong) = fault.check() {
                mistakes.push(format!("fault {}: {wrong}", number + 1));
            }
        }
        if self.any_role && providers.is_empty() {
            mistakes.push("any_role: there is no issuer, so nobody could assume one".to_owned());
        }
        if self.roles.is_empty() && !self.any_role {
            mistakes.push("roles: there is none, so there is nothing to assume".to_owned());
        }
        if mistakes.is_empty() {
            Ok(Account { providers, roles, any_role: self.any_role, users, faults: self.faults })
        } else {
            Err(Mistakes(mistakes))
        }
    }
}

impl IssuerConfig {
    fn check(self, accounts_of_roles: &[String], any_role: bool) -> Result<Provider, Vec<String>> {
        let url = self.url;
        let mut mistakes = Vec::new();
        if !url.starts_with("https://") || issuer_name(&url).is_empty() || url.contains(['?', '#', ' ']) {
            mistakes.push("url must be https://HOST[/PATH], as the iss of its tokens".to_owned());
        }
        let audiences = self.audiences.unwrap_or_else(|| vec!["sts.amazonaws.com".to_owned()]);
        if audiences.is_empty() {
            mistakes.push("audiences is empty, so no token could be good".to_owned());
        }
        let accounts = self.accounts.or_else(|| (!any_role).then(|| accounts_of_roles.to_vec()));
        for account in accounts.iter().flatten().filter(|account| !is_account(account)) {
            mistakes.push(format!("account {account:?} is not 12 digits (quote it in YAML)"));
        }
        let from_discovery = self.jwks.is_none() && self.jwks_file.is_none();
        if !from_discovery && (self.discovery_url.is_some() || self.ca_file.is_some()) {
            mistakes.push(
                "discovery_url and ca_file are for discovery; with jwks or jwks_file there is none"
                    .to_owned(),
            );
        }
        let elsewhere = !from_discovery || self.discovery_url.is_some() || self.ca_file.is_some();
        if self.api_server && elsewhere {
            mistakes.push(
                "api_server says where its keys are; no jwks, jwks_file, discovery_url or ca_file".to_owned(),
            );
        }
        let keys = match (self.jwks, self.jwks_file) {
            (None, None) if self.api_server => Ok(KeySource::api_server(&url, self.kubeconfig)),
            (Some(_), Some(_)) => Err("jwks and jwks_file exclude each other".to_owned()),
            (Some(jwks), None) => given_keys(&jwks),
            (None, Some(file)) => KeySource::file(file).map_err(|err| in_full(&err)),
            (None, None) => {
                let default = || format!("{}/.well-known/openid-configuration", url.trim_end_matches('/'));
                let discovery_url = self.discovery_url.unwrap_or_else(default);
                match discovery_url.parse::<http::Uri>() {
                    Ok(uri) if matches!(uri.scheme_str(), Some("http" | "https")) => {
                        KeySource::discovery(&url, discovery_url, self.ca_file).map_err(|err| in_full(&err))
                    }
                    _ => Err(format!("discovery_url {discovery_url:?} is not an http or https URL")),
                }
            }
        };
        match keys {
            Ok(keys) if mistakes.is_empty() => Ok(Provider { url, audiences, accounts, keys }),
            keys => {
                mistakes.extend(keys.err());
                Err(mistakes.iter().map(|mistake| format!("issuer {url:?}: {mistake}")).collect())
            }
        }
    }
}

impl Role {
    /// A role that nobody made, of `any_role`: it trusts every subject of `providers`, and its account.
    fn of_nobody(arn: &RoleArn, providers: &[Provider]) -> Option<Self> {
        let named = |provider: &Provider| {
            format!("arn:{}:iam::{}:oidc-provider/{}", arn.partition, arn.account, provider.name())
        };
        let own = providers.iter().filter(|provider| provider.is_of(&arn.account));
        let federated: Vec<String> = own.map(named).collect();
        let policy = serde_json::json!({"Version": "2012-10-17", "Statement": [{
            "Effect": "Allow",
            "Principal": {"Federated": federated, "AWS": format!("arn:{}:iam::{}:root", arn.partition, arn.account)},
            "Action": "sts:*",
        }]});
        let names: Vec<String> = providers.iter().map(|provider| provider.name().to_owned()).collect();
        let trust = TrustPolicy::parse(&policy, &names).ok()?;
        Some(Self { arn: arn.clone(), max_session: *MAX_SESSION.end(), trust })
    }
}

impl Account {
    /// The role of that ARN.
    pub(crate) fn role(&self, arn: &RoleArn) -> Option<Cow<'_, Role>> {
        let made = self.roles.iter().find(|role| role.arn == *arn).map(Cow::Borrowed);
        made.or_else(|| {
            self.any_role.then(|| Role::of_nobody(arn, &self.providers)).flatten().map(Cow::Owned)
        })
    }
}

impl RoleConfig {
    fn check(&self, issuers: &[String]) -> Result<Role, Vec<String>> {
        let mut mistakes = Vec::new();
        let arn = RoleArn::parse(&self.arn);
        if arn.is_none() {
            mistakes.push("arn must be arn:aws:iam::ACCOUNT:role/NAME".to_owned());
        }
        let max_session = match &self.max_session_duration {
            None => Some(*MAX_SESSION.start()),
            Some(text) => {
                let parsed =
                    text.parse::<jiff::SignedDuration>().ok().and_then(|d| Duration::try_from(d).ok());
                parsed.filter(|duration| MAX_SESSION.contains(duration))
            }
        };
        if max_session.is_none() {
            mistakes.push("max_session_duration must be between 1h and 12h".to_owned());
        }
        let document = match &self.trust_policy {
            serde_json::Value::String(json) => {
                serde_json::from_str(json).map_err(|err| vec![format!("it is not JSON: {err}")])
            }
            document => Ok(document.clone()),
        };
        let trust = document.and_then(|document| TrustPolicy::parse(&document, issuers));
        match (arn, max_session, trust) {
            (Some(arn), Some(max_session), Ok(trust)) => Ok(Role { arn, max_session, trust }),
            (_, _, trust) => {
                let wrong = trust.err().unwrap_or_default();
                mistakes.extend(wrong.into_iter().map(|wrong| format!("trust_policy: {wrong}")));
                Err(mistakes.iter().map(|mistake| format!("role {:?}: {mistake}", self.arn)).collect())
            }
        }
    }
}

impl UserConfig {
    fn check(self) -> Result<User, Vec<String>> {
        let mut mistakes = Vec::new();
        let arn = UserArn::parse(&self.arn);
        if arn.is_none() {
            mistakes.push("arn must be arn:aws:iam::ACCOUNT:user/NAME");
        }
        let id = &self.access_key_id;
        if !(16..=128).contains(&id.len()) || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            mistakes.push("access_key_id must be 16 to 128 letters and digits");
        }
        if self.secret_access_key.expose_secret().is_empty() {
            mistakes.push("secret_access_key is empty");
        }
        match arn {
            Some(arn) if mistakes.is_empty() => {
                Ok(User { arn, access_key_id: self.access_key_id, secret: self.secret_access_key })
            }
            _ => Err(mistakes.iter().map(|mistake| format!("user {:?}: {mistake}", self.arn)).collect()),
        }
    }
}

fn secret<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<SecretString, D::Error> {
    String::deserialize(deserializer).map(SecretString::from)
}

fn given_keys(jwks: &serde_json::Value) -> Result<KeySource, String> {
    let json = match jwks {
        serde_json::Value::String(json) => json.clone(),
        document => document.to_string(),
    };
    let keys = Jwks::parse(json.as_bytes()).ok().filter(|keys| keys.len() > 0);
    keys.map(KeySource::given)
        .ok_or_else(|| "jwks is not a JWKS with a key that can verify a token".to_owned())
}

fn issuer_name(url: &str) -> &str {
    url.strip_prefix("https://").unwrap_or(url)
}
