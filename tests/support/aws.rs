//! What AWS is in a scenario: two judges behind one door, and what the scenario says that there is.
#![allow(clippy::unwrap_used, unreachable_pub, dead_code, reason = "each scenario uses its own part")]

use std::sync::{Arc, Mutex};

use aws_sdk_sts::config::Credentials;
use rolecall::emulator::{self, Emulator, IssuerConfig, RoleConfig, UserConfig};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::agent::keep_secret;
use crate::apiserver::ApiServer;
use crate::moto::{self, Moto};
use crate::netns::{NODE_IP, Node};
use crate::tenant::Tenant;
use crate::two_sts::TwoSts;

/// What AWS is here: the emulator judges tokens and trust policies, moto issues the keys and enforces roles' policies at its services.
///
/// A scenario first says what there is (nothing is judged yet, so `moto` takes any call), then calls [`Aws::open`].
pub struct Aws<'n> {
    node: &'n Node,
    pub moto: Arc<Moto>,
    /// The second word of every ARN.
    partition: &'static str,
    /// Without `https://`.
    pub issuer: String,
    config: Mutex<emulator::Config>,
}

impl<'n> Aws<'n> {
    /// An AWS without anything in it, at which nobody listens yet.
    pub fn new(
        server: &ApiServer,
        node: &'n Node,
        (partition, region): (&'static str, &'static str),
    ) -> Self {
        let url = server.issuer();
        let issuer = url.trim_start_matches("https://").to_owned();
        let provider = IssuerConfig { url, jwks: Some(server.jwks().into()), ..IssuerConfig::default() };
        let config = emulator::Config { issuers: vec![provider], ..emulator::Config::default() };
        let moto = Arc::new(Moto::start_in(region, NODE_IP));
        Self { node, moto, partition, issuer, config: Mutex::new(config) }
    }

    /// The ARN of what IAM has by that name: `role/web`.
    pub fn arn(&self, name: &str) -> String {
        format!("arn:{}:iam::{}:{name}", self.partition, moto::ACCOUNT)
    }

    /// Changes what the emulator will be told: providers, faults.
    pub fn configure(&self, change: impl FnOnce(&mut emulator::Config)) {
        change(&mut self.config.lock().unwrap());
    }

    /// A trust policy's statement: the ServiceAccount by a token with that audience.
    pub fn trusts(&self, tenant: &Tenant, account: &str, audience: &str) -> Value {
        let (issuer, namespace) = (&self.issuer, &tenant.namespace);
        json!({
            "Effect": "Allow",
            "Principal": {"Federated": self.arn(&format!("oidc-provider/{issuer}"))},
            "Action": "sts:AssumeRoleWithWebIdentity",
            "Condition": {"StringEquals": {
                format!("{issuer}:aud"): audience,
                format!("{issuer}:sub"): format!("system:serviceaccount:{namespace}:{account}"),
            }},
        })
    }

    /// A role, and its ARN: `trust` and `policy` are statements.
    pub fn role(&self, name: &str, trust: &Value, policy: &Value) -> String {
        let arn = self.arn(&format!("role/{name}"));
        let role = RoleConfig { arn: arn.clone(), trust_policy: document(trust), ..RoleConfig::default() };
        self.configure(|config| config.roles.push(role));
        let fields = [("RoleName", name), ("AssumeRolePolicyDocument", &any_trust())];
        self.moto.query("iam", "CreateRole", &fields);
        let policy = document(policy).to_string();
        let fields = [("RoleName", name), ("PolicyName", name), ("PolicyDocument", &policy)];
        self.moto.query("iam", "PutRolePolicy", &fields);
        arn
    }

    /// The same role in the partition `aws`, and its ARN: no STS of another partition has one, but this would give it.
    pub fn twin_in_aws(&self, role: &str) -> String {
        let ours = |text: &str| text.replace(&format!("arn:{}:", self.partition), "arn:aws:");
        self.configure(|config| {
            let mut twin = config.roles.iter().find(|one| one.arn == role).expect("it was made").clone();
            twin.arn = ours(&twin.arn);
            if let Some(provider) = twin.trust_policy.pointer_mut("/Statement/Principal/Federated") {
                *provider = ours(provider.as_str().unwrap()).into();
            }
            config.roles.push(twin);
        });
        ours(role)
    }

    /// A role that was made at moto alone, by somebody's commands: the emulator is told whom it trusts. Its ARN.
    pub fn adopt(&self, name: &str) -> String {
        let made: Value =
            serde_json::from_str(&self.moto.aws(&["iam", "get-role", "--role-name", name])).unwrap();
        let arn = made["Role"]["Arn"].as_str().unwrap().to_owned();
        let trust_policy = made["Role"]["AssumeRolePolicyDocument"].clone();
        let role = RoleConfig { arn: arn.clone(), trust_policy, ..RoleConfig::default() };
        self.configure(|config| config.roles.push(role));
        let fields = [("RoleName", name), ("PolicyDocument", &any_trust())];
        self.moto.query("iam", "UpdateAssumeRolePolicy", &fields);
        arn
    }

    /// An IAM user, and its access key's id and secret: `policy` is a statement.
    pub fn user(&self, name: &str, policy: &Value) -> (String, String) {
        self.moto.query("iam", "CreateUser", &[("UserName", name)]);
        let policy = document(policy).to_string();
        let fields = [("UserName", name), ("PolicyName", name), ("PolicyDocument", &policy)];
        self.moto.query("iam", "PutUserPolicy", &fields);
        let made = self.moto.query("iam", "CreateAccessKey", &[("UserName", name)]);
        let element = |name: &str| {
            let value = made.split_once(&format!("<{name}>")).and_then(|(_, rest)| rest.split_once('<'));
            value.unwrap_or_else(|| panic!("no {name}: {made}")).0.to_owned()
        };
        let (id, secret) = (element("AccessKeyId"), element("SecretAccessKey"));
        keep_secret(&secret);
        let user = UserConfig {
            arn: self.arn(&format!("user/{name}")),
            access_key_id: id.clone(),
            secret_access_key: secret.clone().into(),
        };
        self.configure(|config| config.users.push(user));
        (id, secret)
    }

    /// From now on every call is judged. Returns STS, and its URL for the agent.
    pub fn open(&self) -> (Emulator, String) {
        let (emulator, at) = self.open_at(&format!("{NODE_IP}:0"), None);
        (emulator, format!("http://{at}"))
    }

    /// The same at an address of the scenario's choice.
    pub fn open_at(&self, at: &str, tls: Option<TlsAcceptor>) -> (Emulator, std::net::SocketAddr) {
        self.moto.enforce_iam();
        let (config, moto) = (self.config.lock().unwrap().clone(), Arc::clone(&self.moto));
        let users = config.users.iter().map(|user| {
            let secret = secrecy::ExposeSecret::expose_secret(&user.secret_access_key);
            Credentials::new(&user.access_key_id, secret, None, None, "user")
        });
        let users = users.collect();
        let at = at.to_owned();
        let (sender, started) = std::sync::mpsc::channel();
        self.node.serve(async move || {
            let judge = Emulator::bind(config, "127.0.0.1:0".parse().unwrap()).await.unwrap();
            let gate = TwoSts::new(judge.url(), moto, users);
            let listener = TcpListener::bind(&at).await.unwrap();
            sender.send((judge.emulator(), listener.local_addr().unwrap())).unwrap();
            tokio::join!(judge.serve(), gate.serve(listener, tls));
        });
        started.recv().unwrap()
    }

    /// A bucket `name` with the object `key`, which reads `text`.
    pub fn bucket(&self, name: &str, key: &str, text: &str) {
        let here = format!("<LocationConstraint>{}</LocationConstraint>", self.moto.region());
        let here = format!("<CreateBucketConfiguration>{here}</CreateBucketConfiguration>");
        self.moto.put(&format!("/{name}"), &here);
        self.moto.put(&format!("/{name}/{key}"), text);
    }

    /// A secret, and its ARN.
    pub fn secret(&self, name: &str, text: &str) -> String {
        let body = json!({"Name": name, "SecretString": text});
        let made = self.moto.json("secretsmanager", "secretsmanager.CreateSecret", &body);
        made["ARN"].as_str().unwrap().to_owned()
    }

    /// A KMS key, and its id.
    pub fn key(&self) -> String {
        let made = self.moto.json("kms", "TrentService.CreateKey", &json!({}));
        made["KeyMetadata"]["KeyId"].as_str().unwrap().to_owned()
    }
}

/// A statement that allows calls: `s3:GetObject` on an ARN. At moto, only S3 and STS look at resources; elsewhere it must be `*`.
pub fn allow(action: &str, resource: &str) -> Value {
    json!({"Effect": "Allow", "Action": action, "Resource": resource})
}

/// For moto: the emulator judges who is trusted.
fn any_trust() -> String {
    document(&json!({"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"})).to_string()
}

/// A policy of one statement, or of several.
fn document(statements: &Value) -> Value {
    json!({"Version": "2012-10-17", "Statement": statements})
}
