//! THE STORY of the issuer: two tokens -> a pod of the asking agent's own node, and nobody else's.
//!
//! Each token alone gets nothing. The agent's says which node asks: it is bound to the agent's pod, and the API server puts the
//! node of that pod into it. The pod's says for whom, in the same way. Both are for the issuer's own audience, so that neither
//! is of use at STS, nor a token for STS here.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use secrecy::SecretString;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::refusal::Refusal;
use crate::cluster::{self, Cluster, Reviewed, Verdict};
use crate::identity::allowance::{Allowance, BURST};
use crate::identity::authorization::{Presented, Token};
use crate::identity::pods::ServiceAccountName;

/// Questions to the API server at once: what this costs it is bounded, whoever asks.
const REVIEWS: usize = 32;
/// What a proof asks the API server: about the agent's token, and about the pod's.
const QUESTIONS: u32 = 2;
/// Proofs that one address has under way; its others wait. All of their questions fit into its allowance, and a few mistakes beside
/// them: an agent whose tokens are good gets all of its questions back, and is never refused, however many pods start at once.
const PROOFS_PER_SOURCE: usize = 8;
const MANY: &str = "too many questions of one address, or too many of its tokens were not good";
const _: () = assert!(PROOFS_PER_SOURCE * QUESTIONS as usize + 4 <= BURST as usize);

/// A live pod, as the API server has just named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Its ServiceAccount.
    pub account: ServiceAccountName,
    /// The ServiceAccount's UID.
    pub account_uid: String,
    /// The pod's name.
    pub pod_name: String,
    /// The pod's UID.
    pub pod_uid: String,
    /// Where it runs.
    pub node: String,
    /// `JTI=…` of the token that proved it.
    pub credential_id: Option<String>,
}

/// A pod, and the agent of its node that asks for it. Only [`Prover::prove`] makes one.
#[derive(Clone, Debug)]
pub struct Proved {
    agent: Bound,
    pod: Bound,
}

impl Proved {
    /// Who asks.
    pub fn agent(&self) -> &Bound {
        &self.agent
    }

    /// For whom.
    pub fn pod(&self) -> &Bound {
        &self.pod
    }
}

/// Whatever became known, for the audit line: also of a refusal.
#[derive(Debug, Default)]
pub struct Trail {
    /// Who asks.
    pub agent: Option<Bound>,
    /// For whom.
    pub pod: Option<Bound>,
}

/// Asks the API server whose tokens they are.
pub struct Prover {
    cluster: Arc<dyn Cluster>,
    /// The issuer's own, which both tokens must be for.
    audience: [String; 1],
    /// The agents' ServiceAccount.
    agent: ServiceAccountName,
    reviews: Semaphore,
    sources: Mutex<HashMap<IpAddr, Arc<Source>>>,
}

/// One address. Anybody can write a token that looks good until it is asked about, so each pays for its own questions.
struct Source {
    proofs: Semaphore,
    allowance: Mutex<Allowance>,
}

impl Source {
    fn allowance(&self) -> MutexGuard<'_, Allowance> {
        self.allowance.lock().expect("nothing panics while it holds this lock")
    }
}

impl Prover {
    /// Believes agents of `agent`, by tokens for `audience`.
    pub fn new(cluster: Arc<dyn Cluster>, audience: &str, agent: ServiceAccountName) -> Self {
        let reviews = Semaphore::new(REVIEWS);
        Self { cluster, audience: [audience.to_owned()], agent, reviews, sources: Mutex::default() }
    }

    /// The pod that `pod` is the token of, if `agent` is the token of an agent on the pod's node. `source` pays for the questions, and
    /// has them back for a proof.
    ///
    /// # Errors
    /// Any doubt is a [`Refusal`].
    pub async fn prove(
        &self,
        agent: &Presented,
        pod: &Presented,
        source: IpAddr,
        deadline: Instant,
        trail: &mut Trail,
    ) -> Result<Proved, Refusal> {
        let token = match agent {
            Presented::Nothing => return Err(Refusal::AgentTokenRequired),
            Presented::Word(_) => return Err(Refusal::AgentTokenInvalid("it is no token".into())),
            Presented::Token(token) => token,
        };
        let source = self.source(source);
        let turn = timeout_at(deadline, source.proofs.acquire()).await;
        let _turn = turn.map_err(|_| Refusal::Overloaded(MANY))?.expect("nobody closes it");
        let reviewed = self.review(token, &source, deadline, Refusal::AgentTokenInvalid).await?;
        if account_of(&reviewed.user).as_ref() != Some(&self.agent) {
            return Err(Refusal::NotTheAgent(reviewed.user));
        }
        let agent = Bound::new(reviewed).map_err(Refusal::AgentTokenInvalid)?;
        trail.agent = Some(agent.clone());

        let token = pod.token().ok_or_else(|| Refusal::PodTokenInvalid("it is no token".into()))?;
        let reviewed = self.review(token, &source, deadline, Refusal::PodTokenInvalid).await?;
        let pod = Bound::new(reviewed).map_err(Refusal::PodTokenInvalid)?;
        trail.pod = Some(pod.clone());
        // Without this, whoever holds one node's agent could have the roles of every pod whose token comes to light.
        if agent.node != pod.node {
            let account = pod.account.clone();
            return Err(Refusal::OtherNode { account, pod: pod.node, agent: agent.node });
        }
        source.allowance().give_back(QUESTIONS);
        Ok(Proved { agent, pod })
    }

    fn source(&self, address: IpAddr) -> Arc<Source> {
        let mut sources = self.sources.lock().expect("nothing panics while it holds this lock");
        if let Some(source) = sources.get(&address) {
            return Arc::clone(source);
        }
        let now = Instant::now();
        // Whoever asks nothing now and has all is as one that never asked.
        sources.retain(|_, source| Arc::strong_count(source) > 1 || !source.allowance().is_full(now));
        let allowance = Mutex::new(Allowance::new(now));
        let source = Arc::new(Source { proofs: Semaphore::new(PROOFS_PER_SOURCE), allowance });
        sources.insert(address, Arc::clone(&source));
        source
    }

    /// Whose token it is. The API server looks the pod up as well: a token ends with its pod, up to ten seconds late.
    async fn review(
        &self,
        token: &Token,
        source: &Source,
        deadline: Instant,
        invalid: fn(String) -> Refusal,
    ) -> Result<Reviewed, Refusal> {
        // By its own words, which may refuse and never grant: the API server is not asked in vain.
        if !token.is_for(&self.audience) {
            return Err(invalid(format!("it is not for {}", self.audience[0])));
        }
        if token.remaining().is_zero() {
            return Err(invalid("it has expired".into()));
        }
        if !source.allowance().take(Instant::now()) {
            return Err(Refusal::Overloaded(MANY));
        }
        let asked = async {
            let _permit = self.reviews.acquire().await.expect("nobody closes it");
            self.cluster.review_token(token.text(), &self.audience).await
        };
        let late = |_| Refusal::Overloaded("the API server did not answer in time");
        match timeout_at(deadline, asked).await.map_err(late)?.map_err(Refusal::KubeUnavailable)? {
            Verdict::Bad(why) => Err(invalid(why)),
            // One that knows no audiences names none, and has not looked.
            Verdict::Good(reviewed) if !reviewed.audiences.contains(&self.audience[0]) => {
                Err(invalid(format!("the API server does not say that it is for {}", self.audience[0])))
            }
            Verdict::Good(reviewed) => Ok(reviewed),
        }
    }

    /// Resolves when the API server answers such questions, which takes the right to ask them.
    ///
    /// # Errors
    /// What it says instead.
    pub async fn may_ask(&self) -> Result<(), cluster::Error> {
        self.cluster.review_token(&SecretString::from("nobody's"), &self.audience).await.map(drop)
    }
}

impl Bound {
    fn new(reviewed: Reviewed) -> Result<Self, String> {
        let Reviewed { user, user_uid, pod_name, pod_uid, node_name, credential_id, .. } = reviewed;
        let account = account_of(&user).ok_or_else(|| format!("it is of {user:?}, no ServiceAccount"))?;
        let (Some(pod_name), Some(pod_uid)) = (pod_name, pod_uid) else {
            return Err(format!("it is of ServiceAccount {account}, and bound to no pod"));
        };
        let Some(node) = node_name else {
            return Err(format!(
                "it names no node: pod {pod_name} of {account} had none yet, or Kubernetes is older than 1.30"
            ));
        };
        Ok(Self { account, account_uid: user_uid, pod_name, pod_uid, node, credential_id })
    }
}

/// `system:serviceaccount:NAMESPACE:NAME`
fn account_of(user: &str) -> Option<ServiceAccountName> {
    let (namespace, name) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    let plain = |part: &str| !part.is_empty() && !part.contains([':', '/']);
    (plain(namespace) && plain(name))
        .then(|| ServiceAccountName { namespace: namespace.into(), name: name.into() })
}

#[cfg(test)]
#[path = "proof/tests.rs"]
mod tests;
