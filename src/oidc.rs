//! `rolecall oidc`: the documents and figures that an issuer of one's own needs, for AWS and for a static web host.
//!
//! Reads public keys, an API server's two public documents, and what is published; holds no secret and signs nothing.

mod check;
mod der;
pub(crate) mod documents;
pub(crate) mod fetch;
pub mod keys;
mod thumbprint;
mod trust_policy;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use self::documents::{ApiServer, Documents, IssuerUrl, pretty};
use self::fetch::Fetcher;
use self::keys::PublicKey;
use self::thumbprint::Server;
use self::trust_policy::{Subject, Trust};
use crate::config::{AUDIENCE, Mistakes};
use crate::telemetry::in_full;

/// `EX_USAGE`: bad usage, as opposed to something that failed.
const EXIT_USAGE: u8 = 64;
/// What IAM takes: <https://docs.aws.amazon.com/IAM/latest/APIReference/API_CreateOpenIDConnectProvider.html>
const MAX_URL: usize = 255;
const MAX_AUDIENCES: usize = 100;
const MAX_THUMBPRINTS: usize = 5;

/// `rolecall oidc`
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The issuer's discovery document; with --out also its keys, as files for any static web host.
    Discovery(DiscoveryArgs),
    /// The issuer's public keys as a JWKS.
    Jwks(KeyArgs),
    /// SHA-1 of the last certificate that a TLS server sends, as IAM wants it for an issuer with a private CA.
    Thumbprint {
        /// Where the keys are: the host of the discovery document's jwks_uri; port 443 unless given.
        #[arg(value_name = "URL|HOST[:PORT]")]
        server: String,
    },
    /// The trust policy that gives a role to ServiceAccounts, of one cluster or of several.
    TrustPolicy(TrustPolicyArgs),
    /// The input of `aws iam create-open-id-connect-provider --cli-input-json file://…`.
    Provider(ProviderArgs),
}

#[derive(clap::Args)]
struct KeyArgs {
    /// Ask this API server for its keys and its issuer [default: in a pod, the pod's own].
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Public key in PEM, RSA or ECDSA, instead of an API server; repeatable, and a file may hold several.
    #[arg(long, value_name = "FILE", conflicts_with = "kubeconfig")]
    public_key: Vec<PathBuf>,
    /// Publish each key once more with an empty id, for tokens that name no key (Kubernetes before 1.16).
    #[arg(long)]
    empty_kid: bool,
}

#[derive(clap::Args)]
struct DiscoveryArgs {
    #[command(flatten)]
    keys: KeyArgs,
    /// The issuer, exactly as tokens name it [default: what the API server says].
    #[arg(long, value_name = "URL")]
    issuer: Option<String>,
    /// Where the keys will be, below the issuer [default: what the API server says if that is below it, else openid/v1/jwks].
    #[arg(long, value_name = "PATH")]
    jwks_path: Option<String>,
    /// Write both documents into this folder, which is to be found at the issuer's URL.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write nothing; fetch what is published at this issuer and say what differs. Exit code 1 if anything does.
    #[arg(long, value_name = "URL", conflicts_with_all = ["out", "jwks_path"])]
    check: Option<String>,
    /// With --check: trust these certificates (PEM) alone [default: the system's].
    #[arg(long, value_name = "FILE", requires = "check")]
    ca_file: Option<PathBuf>,
}

#[derive(clap::Args)]
struct TrustPolicyArgs {
    /// The account of the role and of the identity provider.
    #[arg(long, value_name = "ID")]
    account: String,
    /// A cluster: its issuer's URL, or a kubeconfig to ask it with. Repeatable: a statement each.
    #[arg(long, visible_alias = "issuer", value_name = "URL|KUBECONFIG", required = true)]
    cluster: Vec<String>,
    /// Who may have the role; NAME may hold * for any characters. Repeatable.
    #[arg(long, value_name = "NAMESPACE/NAME", required = true)]
    service_account: Vec<String>,
    /// The audience that tokens must have, as --audience of the agent. Repeatable: one of them.
    #[arg(long, default_value = AUDIENCE)]
    audience: Vec<String>,
    /// aws-cn, aws-us-gov and so on.
    #[arg(long, default_value = "aws")]
    partition: String,
}

#[derive(clap::Args)]
struct ProviderArgs {
    /// The cluster: its issuer's URL, or a kubeconfig to ask it with.
    #[arg(long, visible_alias = "issuer", value_name = "URL|KUBECONFIG")]
    cluster: String,
    /// The audiences that tokens may have. Repeatable.
    #[arg(long, default_value = AUDIENCE)]
    audience: Vec<String>,
    /// Only for a private CA: what `rolecall oidc thumbprint` says. Repeatable [default: IAM looks itself].
    #[arg(long, value_name = "SHA1")]
    thumbprint: Vec<String>,
}

/// Why a command gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// All that is wrong with the arguments.
    #[error(transparent)]
    Usage(#[from] Mistakes),
    /// The API server's documents cannot be had.
    #[error(transparent)]
    ApiServer(#[from] documents::Error),
    /// The API server's issuer is none that AWS could fetch keys from.
    #[error("the API server's issuer: {0}")]
    Issuer(String),
    /// No client to fetch with.
    #[error("cannot fetch anything: {0}")]
    Fetcher(String),
    /// No thumbprint.
    #[error(transparent)]
    Thumbprint(#[from] thumbprint::Error),
    /// A file of `--out`.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Nobody reads our standard output.
    #[error("standard output")]
    Stdout(#[source] std::io::Error),
    /// What is published is not what tokens need; it has been said already.
    #[error("{0} differs from what tokens are signed with")]
    Differs(String),
    /// No quota allows the policy.
    #[error("IAM does not take a trust policy of {0} characters")]
    TooLong(usize),
}

/// Runs the command; the answer is on stdout, advice on stderr.
pub fn run(args: Args) -> ExitCode {
    let ran = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|err| err.to_string())
        .map(|runtime| runtime.block_on(answer(args.command)));
    match ran {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(Error::Usage(mistakes))) => {
            eprint!("{mistakes}");
            ExitCode::from(EXIT_USAGE)
        }
        Ok(Err(err)) => {
            eprintln!("error: {}", in_full(&err));
            ExitCode::FAILURE
        }
        Err(err) => {
            eprintln!("error: {err}");
            ExitCode::FAILURE
        }
    }
}

async fn answer(command: Command) -> Result<(), Error> {
    match command {
        Command::Discovery(args) => discovery(args).await,
        Command::Jwks(args) => jwks(args).await,
        Command::Thumbprint { server } => thumbprint(&server).await,
        Command::TrustPolicy(args) => trust_policy(args).await,
        Command::Provider(args) => provider(args).await,
    }
}

async fn discovery(args: DiscoveryArgs) -> Result<(), Error> {
    let mut mistakes = Collected::default();
    let given = mistakes.keep(args.keys.read());
    let issuer =
        args.issuer.as_deref().and_then(|url| mistakes.keep(named("--issuer", IssuerUrl::parse(url))));
    if !args.keys.public_key.is_empty() && args.issuer.is_none() {
        mistakes
            .add("--public-key: a key does not say whose it is; name the issuer with --issuer".to_owned());
    }
    if let Some(path) = &args.jwks_path {
        mistakes.keep(named("--jwks-path", documents::check_path(path)));
    }
    let fetcher = match (&args.check, &args.ca_file) {
        (Some(url), ca) => {
            mistakes.keep(named("--check", check_url(url)));
            match Fetcher::new(ca.as_deref()) {
                Ok(fetcher) => Some(fetcher),
                Err(err @ fetch::Error::CaFile { .. }) => {
                    mistakes.add(format!("--ca-file: {}", in_full(&err)));
                    None
                }
                Err(err) => return Err(Error::Fetcher(in_full(&err))),
            }
        }
        (None, _) => None,
    };
    mistakes.none()?;

    let mut keys = given.unwrap_or_default();
    let mut server = None;
    if keys.is_empty() {
        let mut asked = ApiServer::ask(args.keys.kubeconfig.as_deref()).await?;
        keys.append(&mut asked.keys);
        server = Some(asked);
    }
    if args.keys.empty_kid {
        documents::add_empty_kids(&mut keys);
    }
    // Where --issuer names the one to come, the API server still signs for the one it has, which a check must say.
    let (issuer, signs_for) = match (issuer, &server) {
        (Some(issuer), server) => {
            let signs_for = server.as_ref().map_or(issuer.as_str(), |server| &server.issuer).to_owned();
            (issuer, signs_for)
        }
        (None, Some(server)) => {
            (IssuerUrl::parse(&server.issuer).map_err(Error::Issuer)?, server.issuer.clone())
        }
        (None, None) => unreachable!("keys without an issuer are bad usage, said above"),
    };
    if let (Some(url), Some(fetcher)) = (&args.check, &fetcher) {
        return report(url, check::check(url, &signs_for, &keys, fetcher).await, keys.len());
    }
    let of_server = server.as_ref().and_then(|server| {
        let path = server.jwks_uri.strip_prefix(&issuer.below(""))?;
        documents::check_path(path).ok().map(|()| path.to_owned())
    });
    let jwks_path = args.jwks_path.or(of_server).unwrap_or_else(|| documents::JWKS.to_owned());
    let documents = Documents { issuer, jwks_path, keys };
    let Some(folder) = &args.out else { return print(&pretty(&documents.discovery())) };
    let written = documents.write(folder).map_err(|(path, source)| Error::Write { path, source })?;
    for (file, path) in written.iter().zip([documents.jwks_path.as_str(), documents::DISCOVERY]) {
        eprintln!("{} -> {} (application/json)", file.display(), documents.issuer.below(path));
    }
    Ok(())
}

fn report(url: &str, findings: check::Findings, keys: usize) -> Result<(), Error> {
    for note in &findings.notes {
        eprintln!("note: {note}");
    }
    if findings.differences.is_empty() {
        return print(&format!("{url} publishes what tokens are signed with: {keys} keys\n"));
    }
    print(
        &findings.differences.iter().map(|difference| format!("differs: {difference}\n")).collect::<String>(),
    )?;
    Err(Error::Differs(url.to_owned()))
}

async fn jwks(args: KeyArgs) -> Result<(), Error> {
    let mut mistakes = Collected::default();
    let given = mistakes.keep(args.read());
    mistakes.none()?;
    let mut keys = given.unwrap_or_default();
    if keys.is_empty() {
        keys = ApiServer::ask(args.kubeconfig.as_deref()).await?.keys;
    }
    if args.empty_kid {
        documents::add_empty_kids(&mut keys);
    }
    print(&pretty(&documents::jwks(&keys)))
}

async fn thumbprint(server: &str) -> Result<(), Error> {
    let server = Server::parse(server).map_err(|wrong| Mistakes(vec![wrong]))?;
    let chain = thumbprint::chain(&server).await?;
    match chain.length {
        1 => eprintln!(
            "note: the server sends its own certificate alone, so this changes whenever that is renewed; better that it sends its CA's too"
        ),
        length => eprintln!("of the last of {length} certificates that the server sends"),
    }
    eprintln!(
        "note: AWS looks at a thumbprint only if the server's certificate is not signed by a CA of AWS's own list; with a public CA \
         (S3, CloudFront, Let's Encrypt) it is kept and ignored, and IAM finds one by itself"
    );
    print(&format!("{}\n", chain.thumbprint))
}

async fn trust_policy(args: TrustPolicyArgs) -> Result<(), Error> {
    let mut mistakes = Collected::default();
    if args.account.len() != 12 || !args.account.bytes().all(|b| b.is_ascii_digit()) {
        mistakes.add(format!("--account: {:?} is not 12 digits", args.account));
    }
    if args.partition.is_empty() || !args.partition.bytes().all(|b| b.is_ascii_lowercase() || b == b'-') {
        mistakes.add(format!("--partition: {:?} is none such as aws or aws-cn", args.partition));
    }
    let clusters = Cluster::parse_all(&args.cluster, &mut mistakes);
    let parse = |text: &String| named("--service-account", Subject::parse(text));
    let mut subjects: Vec<Subject> =
        args.service_account.iter().filter_map(|text| mistakes.keep(parse(text))).collect();
    check_audiences(&args.audience, &mut mistakes);
    mistakes.none()?;
    let mut issuers = Vec::new();
    for cluster in clusters {
        let issuer = cluster.issuer().await?;
        if issuers.contains(&issuer) {
            return Err(Mistakes(vec![format!("--cluster: {} is named twice", issuer.as_str())]).into());
        }
        issuers.push(issuer);
    }
    subjects.sort();
    subjects.dedup();
    let (account, partition) = (&args.account, &args.partition);
    let trust =
        Trust { partition, account, issuers: &issuers, subjects: &subjects, audiences: &args.audience };
    let policy = trust.policy();
    print(&pretty(&policy))?;
    trust.advice().iter().for_each(|line| eprintln!("{line}"));
    warn_of_api_audience(&args.audience, &issuers);
    match policy.length() {
        0..=trust_policy::MAX_LIMIT => Ok(()),
        length => Err(Error::TooLong(length)),
    }
}

async fn provider(args: ProviderArgs) -> Result<(), Error> {
    let mut mistakes = Collected::default();
    let cluster = Cluster::parse_all(std::slice::from_ref(&args.cluster), &mut mistakes).pop();
    check_audiences(&args.audience, &mut mistakes);
    let parse = |text: &String| named("--thumbprint", thumbprint::parse(text));
    let thumbprints: Vec<String> =
        args.thumbprint.iter().filter_map(|text| mistakes.keep(parse(text))).collect();
    if thumbprints.len() > MAX_THUMBPRINTS {
        mistakes.add(format!("--thumbprint: IAM takes {MAX_THUMBPRINTS}"));
    }
    mistakes.none()?;
    let issuer = cluster.expect("what is no cluster is a mistake").issuer().await?;
    let url = issuer.as_str();
    if url.len() > MAX_URL {
        return Err(Mistakes(vec![format!("{url}: IAM takes URLs of {MAX_URL} characters")]).into());
    }
    if url.parse::<http::Uri>().is_ok_and(|url| url.port().is_some()) {
        eprintln!("note: IAM's documentation wants no port in an issuer's URL");
    }
    let mut input = json!({"Url": url, "ClientIDList": args.audience});
    if !thumbprints.is_empty() {
        input["ThumbprintList"] = json!(thumbprints);
    }
    print(&pretty(&input))?;
    warn_of_api_audience(&args.audience, &[issuer]);
    Ok(())
}

impl KeyArgs {
    /// The keys of the files, each once; none if there are no files.
    fn read(&self) -> Result<Vec<Value>, Vec<String>> {
        let mut mistakes = Vec::new();
        let mut keys: Vec<PublicKey> = Vec::new();
        for path in &self.public_key {
            match PublicKey::read_file(path) {
                Ok(more) => {
                    for key in more {
                        if !keys.contains(&key) {
                            keys.push(key);
                        }
                    }
                }
                Err(err) => mistakes.push(format!("--public-key {}: {}", path.display(), in_full(&err))),
            }
        }
        if mistakes.is_empty() { Ok(keys.iter().map(PublicKey::jwk).collect()) } else { Err(mistakes) }
    }
}

/// A cluster as the command line names it.
enum Cluster<'a> {
    Issuer(IssuerUrl),
    Kubeconfig(&'a Path),
}

impl<'a> Cluster<'a> {
    fn parse_all(names: &'a [String], mistakes: &mut Collected) -> Vec<Self> {
        let parse = |name: &'a String| match name {
            url if url.contains("://") => IssuerUrl::parse(url).map(Self::Issuer),
            path if Path::new(path).is_file() => Ok(Self::Kubeconfig(Path::new(path))),
            neither => Err(format!("{neither:?} is neither an issuer's URL nor a kubeconfig file")),
        };
        names.iter().filter_map(|name| mistakes.keep(named("--cluster", parse(name)))).collect()
    }

    async fn issuer(self) -> Result<IssuerUrl, Error> {
        match self {
            Self::Issuer(issuer) => Ok(issuer),
            Self::Kubeconfig(path) => {
                IssuerUrl::parse(&ApiServer::ask(Some(path)).await?.issuer).map_err(Error::Issuer)
            }
        }
    }
}

fn check_audiences(audiences: &[String], mistakes: &mut Collected) {
    for audience in audiences {
        if !(1..=255).contains(&audience.len()) || audience.contains(char::is_whitespace) {
            mistakes.add(format!("--audience: {audience:?} is not 1 to 255 characters without white space"));
        }
    }
    if audiences.len() > MAX_AUDIENCES {
        mistakes.add(format!("--audience: IAM takes {MAX_AUDIENCES}"));
    }
}

/// Allowed, and worth a word: such a token is good at the API server, too, until it expires.
fn warn_of_api_audience(audiences: &[String], issuers: &[IssuerUrl]) {
    let default = |audience: &str| {
        audience.starts_with("https://kubernetes.default.svc")
            || issuers.iter().any(|one| one.as_str() == audience)
    };
    for audience in audiences.iter().filter(|audience| default(audience)) {
        eprintln!(
            "note: {audience} is an API server's own audience as a rule: whoever sees such a token, STS included, can use it there"
        );
    }
}

/// A published issuer, which a check may find to be plain http.
fn check_url(text: &str) -> Result<(), String> {
    let url = text.parse::<http::Uri>().ok().filter(|url| url.authority().is_some());
    match url.as_ref().and_then(http::Uri::scheme_str) {
        Some("https" | "http") if !text.contains(['?', '#']) => Ok(()),
        _ => Err(format!("{text:?} is not an issuer: https://HOST[/PATH], without query")),
    }
}

fn print(text: &str) -> Result<(), Error> {
    let mut stdout = std::io::stdout();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(Error::Stdout)
}

/// Mistakes on the way, so that all are reported together.
#[derive(Default)]
struct Collected(Vec<String>);

impl Collected {
    fn add(&mut self, mistake: String) {
        self.0.push(mistake);
    }

    fn keep<T>(&mut self, checked: Result<T, Vec<String>>) -> Option<T> {
        checked.map_err(|mistakes| self.0.extend(mistakes)).ok()
    }

    fn none(self) -> Result<(), Mistakes> {
        if self.0.is_empty() { Ok(()) } else { Err(Mistakes(self.0)) }
    }
}

fn named<T>(flag: &str, checked: Result<T, String>) -> Result<T, Vec<String>> {
    checked.map_err(|mistake| vec![format!("{flag}: {mistake}")])
}
