//! `rolecall dev`: the agent's own path from "pod" to "answer" on loopback, between two doors of its own: a
//! cluster of one pod that signs its tokens itself, and the emulator (or an STS of your choice).

use std::net::SocketAddr;
use std::process::{ExitCode, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::future::BoxFuture;
use ring::rand::{SecureRandom, SystemRandom};
use secrecy::{ExposeSecret, SecretString};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::app::App;
use crate::cluster::{self, Cluster, Verdict};
use crate::config::{self, AUDIENCE};
use crate::credentials::{Credentials, Keys};
use crate::emulator::{self, Emulator, Issuer};
use crate::identity::authorization::{Authorization, Required, TokenSource};
use crate::identity::evidence::Source;
use crate::identity::pods::{Pod, PodUid, ServiceAccountName};
use crate::metrics::Metrics;
use crate::role::{Defaults, RoleArn, RolePlan};
use crate::server::ecs;
use crate::sts::endpoint::Settings;
use crate::sts::{self, Sts, StsClient};
use crate::telemetry::Lines;
use crate::token::BoundToken;
use crate::{shutdown, time};

/// Whose tokens these are; nobody else's STS will ever trust it.
const ISSUER: &str = "https://dev.rolecall.invalid";
const NAMESPACE: &str = "default";
const ACCOUNT: &str = "dev";
const POD: &str = "dev-pod";
const POD_UID: &str = "00000000-0000-4000-8000-000000000001";
/// Where no region is set: the emulator does not care, and SDKs want one.
const REGION: &str = "us-east-1";
/// What a shell says of a command that it cannot find.
const EXIT_NOT_FOUND: u8 = 127;

/// Every other place where an SDK would find credentials; taken out of CMD's environment.
const OTHER_SOURCES: [&str; 14] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_CREDENTIAL_EXPIRATION",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_CREDENTIAL_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
];
/// Files that an SDK reads by itself; nothing is in `/dev/null`.
const EMPTY_FILES: [&str; 3] = ["AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "BOTO_CONFIG"];

/// `rolecall dev`
#[derive(clap::Args)]
pub struct Args {
    /// The role that the one pod gets.
    #[arg(long, default_value = "arn:aws:iam::123456789012:role/dev")]
    role_arn: String,
    /// Another STS instead of the emulator, such as moto's or LocalStack's.
    #[arg(long)]
    sts_endpoint_url: Option<String>,
    /// Loopback address to serve on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Print the token and the credentials, too.
    #[arg(long)]
    show_secrets: bool,
    /// A command to run with the environment set; its exit code is passed on.
    #[arg(last = true)]
    command: Vec<String>,
}

/// What is wrong with the arguments: exit code 64.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(String);

/// Runs `rolecall dev` until its command ends, or a signal comes.
///
/// # Errors
/// [`Usage`] for bad arguments; anything else is a failed start.
pub async fn run(args: Args) -> Result<ExitCode> {
    let Args { role_arn, sts_endpoint_url, listen, show_secrets, command } = args;
    let role = RoleArn::parse(&role_arn).map_err(|why| Usage(format!("--role-arn: {role_arn:?}: {why}")))?;
    if let Some(why) = sts_endpoint_url.as_deref().and_then(config::endpoint::wrong_url) {
        return Err(Usage(format!("--sts-endpoint-url: {why}")).into());
    }
    if !listen.ip().is_loopback() {
        return Err(Usage(format!("--listen: {listen} is not loopback; anybody could ask there")).into());
    }
    let issuer = Arc::new(Issuer::generate(ISSUER));
    let mut tasks = JoinSet::new();
    let emulated = sts_endpoint_url.is_none();
    let sts_url = match sts_endpoint_url {
        Some(url) => url,
        None => emulate(&issuer, &role, &mut tasks).await?,
    };

    eprintln!("rolecall dev: the agent's own path on loopback, with one pod");
    eprintln!("  real:      token signatures, the trust policy, expiry, the answer and its caching");
    eprintln!(
        "  not real:  IAM policies: nothing checks what the role may do; no other pod, no cluster, no kernel"
    );
    if !emulated {
        eprintln!("  your STS:  {sts_url} (it decides what it checks; the issuer is self-made)");
    }
    let region = ["AWS_REGION", "AWS_DEFAULT_REGION"].into_iter().find_map(|name| std::env::var(name).ok());
    let region = region.unwrap_or_else(|| REGION.into());
    let sts = StsClient::new(&region, Settings { url: Some(sts_url.clone()), ..Settings::default() })?;

    let listener = TcpListener::bind(listen).await.with_context(|| format!("--listen {listen}"))?;
    let address = listener.local_addr()?;
    let pod = pod(address);
    eprintln!("  pod:             {NAMESPACE}/{POD} at {}", address.ip());
    eprintln!("  ServiceAccount:  {}", pod.service_account);
    eprintln!("  role:            {role}");

    let metrics = Arc::new(Metrics::new());
    let lines = Lines::start(std::io::sink(), metrics.dropped_lines.clone())?;
    let doors = Narrated { show_secrets };
    let cluster = Arc::new(OnePod { pod: pod.clone(), issuer, narrated: doors });
    let sts = Arc::new(NarratedSts { sts, narrated: doors });
    let word = random()?;
    let authorization = Authorization {
        required: Required::Word(word.clone()),
        audiences: Vec::new(),
        tokens: TokenSource::Kubernetes,
    };
    let app =
        App::new(Source::Address, authorization, Defaults::of_node("dev"), cluster, sts, metrics, lines);
    let annotations = [("rolecall.dev/role-arn".to_owned(), role.to_string())].into();
    app.accounts.apply(&pod.service_account, POD_UID, &annotations);
    app.pods.reset(vec![pod]);

    let (trigger, drain) = shutdown::drain();
    app.serve(vec![listener], &drain, &mut tasks)?;
    drop(drain);

    let environment = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("http://{address}{}", ecs::PATH)),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", word.expose_secret().to_owned()),
        // botocore and the AWS CLI v1 read only the second one.
        ("AWS_REGION", region.clone()),
        ("AWS_DEFAULT_REGION", region),
        ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
        ("NO_PROXY", no_proxy(&address)),
        ("no_proxy", no_proxy(&address)),
        ("AWS_ENDPOINT_URL_STS", sts_url),
    ];
    // With an STS of their own, the user's SDK configuration decides where its other calls go.
    let environment = &environment[..if emulated { 8 } else { 7 }];
    let code = match command.split_first() {
        Some((program, arguments)) => run_command(program, arguments, environment).await?,
        None => {
            println!("unset {}", OTHER_SOURCES.join(" "));
            for (name, value) in environment {
                println!("export {name}='{value}'");
            }
            for name in EMPTY_FILES {
                println!("export {name}=/dev/null");
            }
            eprintln!("serving; put the lines above into another shell, and end this with Ctrl-C");
            shutdown::signalled().await?;
            ExitCode::SUCCESS
        }
    };
    trigger.finish().await;
    Ok(code)
}

/// Starts the emulator with one role that trusts one ServiceAccount; returns its URL.
async fn emulate(issuer: &Issuer, role: &RoleArn, tasks: &mut JoinSet<()>) -> Result<String> {
    let account =
        role.account().ok_or_else(|| Usage("--role-arn: the emulator's roles have an account".into()))?;
    let partition = role.as_str().split(':').nth(1).unwrap_or("aws");
    let name = issuer.url().trim_start_matches("https://");
    let trust_policy = serde_json::json!({
        "Version": "2012-10-17",
        "Statement": [{
            "Effect": "Allow",
            "Principal": {"Federated": format!("arn:{partition}:iam::{account}:oidc-provider/{name}")},
            "Action": "sts:AssumeRoleWithWebIdentity",
            "Condition": {"StringEquals": {
                format!("{name}:sub"): format!("system:serviceaccount:{NAMESPACE}:{ACCOUNT}"),
                format!("{name}:aud"): AUDIENCE,
            }},
        }],
    });
    let config = emulator::Config {
        issuers: vec![emulator::IssuerConfig {
            url: issuer.url().to_owned(),
            jwks: Some(serde_json::Value::String(issuer.jwks_json())),
            ..Default::default()
        }],
        roles: vec![emulator::RoleConfig { arn: role.to_string(), trust_policy, ..Default::default() }],
        ..Default::default()
    };
    let bound = Emulator::bind(config, SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    let url = bound.url();
    tasks.spawn(bound.serve());
    Ok(url)
}

fn pod(address: SocketAddr) -> Pod {
    Pod {
        uid: PodUid::new(POD_UID),
        name: POD.into(),
        service_account: ServiceAccountName { namespace: NAMESPACE.into(), name: ACCOUNT.into() },
        addresses: vec![address.ip()],
        host_network: false,
        finished: false,
        terminating: false,
        asks: true,
        prefers_web_identity: false,
        asked: None,
    }
}

/// Loopback is shared with every user of this machine; only who was given this value is answered.
fn random() -> Result<SecretString> {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).map_err(|_| anyhow::anyhow!("the kernel gives no random bytes"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into())
}

/// Go, Rust and minio-go honour HTTP_PROXY for this address; the value must not go to a proxy.
fn no_proxy(address: &SocketAddr) -> String {
    let own = address.ip().to_string();
    match std::env::var("NO_PROXY").or_else(|_| std::env::var("no_proxy")) {
        Ok(others) if !others.is_empty() => format!("{others},{own}"),
        _ => own,
    }
}

async fn run_command(
    program: &str,
    arguments: &[String],
    environment: &[(&str, String)],
) -> Result<ExitCode> {
    let mut command = Command::new(program);
    command.args(arguments).kill_on_drop(true);
    for name in OTHER_SOURCES {
        command.env_remove(name);
    }
    command.envs(EMPTY_FILES.map(|name| (name, "/dev/null")));
    command.envs(environment.iter().map(|(name, value)| (name, value.as_str())));
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(err) => {
            eprintln!("rolecall dev: {program}: {err}");
            return Ok(ExitCode::from(EXIT_NOT_FOUND));
        }
    };
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    loop {
        tokio::select! {
            status = child.wait() => return Ok(exit_code(status?)),
            // A terminal's Ctrl-C reaches the command as well, and it may have its own idea of it.
            _ = interrupt.recv() => {}
            _ = terminate.recv() => pass_on(&child),
        }
    }
}

fn pass_on(child: &tokio::process::Child) {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
}

/// The command's own code, or 128 and the signal that ended it, as a shell says it.
fn exit_code(status: ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

#[derive(Clone, Copy)]
struct Narrated {
    show_secrets: bool,
}

/// A cluster of one pod. Its tokens are the ones that an API server makes: same claims, another key.
struct OnePod {
    pod: Pod,
    issuer: Arc<Issuer>,
    narrated: Narrated,
}

impl Cluster for OnePod {
    fn pods_now(&self) -> BoxFuture<'_, Result<Vec<Pod>, cluster::Error>> {
        Box::pin(async { Ok(vec![self.pod.clone()]) })
    }

    fn request_token<'a>(
        &'a self,
        pod: &'a Pod,
        audience: &'a str,
        life: Duration,
    ) -> BoxFuture<'a, Result<BoundToken, cluster::Error>> {
        Box::pin(async move {
            let now = time::now();
            let account = &pod.service_account;
            let subject = format!("system:serviceaccount:{}:{}", account.namespace, account.name);
            let expires = time::plus(now, life);
            let token = self.issuer.sign(&serde_json::json!({
                "iss": self.issuer.url(), "sub": subject, "aud": [audience],
                "iat": now.as_second(), "nbf": now.as_second(), "exp": expires.as_second(),
                "kubernetes.io": {
                    "namespace": &*account.namespace,
                    "pod": {"name": &*pod.name, "uid": pod.uid.as_str()},
                    "serviceaccount": {"name": &*account.name, "uid": POD_UID},
                },
            }));
            eprintln!(
                "  token:           sub={subject} aud={audience} iss={} expires={expires:.0}",
                self.issuer.url()
            );
            if self.narrated.show_secrets {
                eprintln!("                   {}", token.expose_secret());
            }
            Ok(BoundToken::new(token, life))
        })
    }

    fn review_token<'a>(
        &'a self,
        _token: &'a SecretString,
        _audiences: &'a [String],
    ) -> BoxFuture<'a, Result<Verdict, cluster::Error>> {
        Box::pin(async { Ok(Verdict::Bad("the word of this server is all that it takes".into())) })
    }
}

/// STS, with every answer told.
struct NarratedSts {
    sts: StsClient,
    narrated: Narrated,
}

impl Sts for NarratedSts {
    fn assume_role_with_web_identity<'a>(
        &'a self,
        plan: &'a RolePlan,
        token: &'a BoundToken,
    ) -> BoxFuture<'a, Result<Credentials, sts::Error>> {
        Box::pin(async move { self.tell(plan, self.sts.assume_role_with_web_identity(plan, token).await) })
    }

    fn assume_role<'a>(
        &'a self,
        plan: &'a RolePlan,
        keys: &'a Keys,
    ) -> BoxFuture<'a, Result<Credentials, sts::Error>> {
        Box::pin(async move { self.tell(plan, self.sts.assume_role(plan, keys).await) })
    }
}

impl NarratedSts {
    fn tell(
        &self,
        plan: &RolePlan,
        answer: Result<Credentials, sts::Error>,
    ) -> Result<Credentials, sts::Error> {
        match &answer {
            Ok(keys) => {
                eprintln!("  STS:             {} as {}", keys.access_key_id, plan.session_name.as_str());
                eprintln!("  expires:         {}, renewed at half of that", keys.expiration);
                if self.narrated.show_secrets {
                    eprintln!("                   {}", keys.secret_access_key.expose_secret());
                    eprintln!("                   {}", keys.session_token.expose_secret());
                }
            }
            Err(err) => eprintln!("  STS:             {err}"),
        }
        answer
    }
}
