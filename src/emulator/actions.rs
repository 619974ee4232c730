//! The three actions: who calls, what was proved, what the role's trust policy says, and what is issued.

use std::collections::HashMap;
use std::sync::PoisonError;
use std::time::Duration;

use http::request::Parts;
use jiff::{SignedDuration, Timestamp};

use super::World;
use super::arn::RoleArn;
use super::config::Role;
use super::error::Refusal;
use super::jwt::{Claims, Unverified};
use super::keys::Unproved;
use super::params::{Params, Tag, Wanted};
use super::policy::{Caller, Request};
use super::session_claims::SessionClaims;
use super::sessions::Session;
use super::sigv4::Signed;
use super::xml::{Answer, NewSession};

/// How far an issuer's clock may be ahead of ours.
const CLOCK_SKEW: f64 = 60.0;

/// AWS's limit for a session that was made by a session.
const CHAIN_LIMIT: Duration = Duration::from_secs(3600);

const DEFAULT_DURATION: Duration = Duration::from_secs(3600);

/// What the log line of a call says. Filled in as it is proved; nothing a stranger sent stands in it unproved.
#[derive(Debug, Default)]
pub(crate) struct Record {
    pub role: String,
    pub session: String,
    pub subject: String,
}

/// Whoever signed a call.
struct Signer {
    arn: String,
    user_id: String,
    account: String,
    /// For a role's session: the session.
    session: Option<Session>,
}

/// A token for a role.
pub(crate) async fn assume_role_with_web_identity(
    world: &World,
    mut params: Params,
    record: &mut Record,
) -> Result<Answer, Refusal> {
    let wanted = params.wanted();
    let token = params.token();
    params.check()?;
    let arn = role_arn(&wanted)?;
    record.role = arn.to_string();
    record.session.clone_from(&wanted.session);
    wanted.packed_policy_size(&[])?;

    let token = Unverified::parse(&token).map_err(|err| {
        Refusal::invalid_token(
            "The ID Token provided is not a valid JWT. (You may see this error if you sent an Access Token)",
        )
        .because(err.to_string())
    })?;
    let provider = world.account.providers.iter().find(|provider| {
        // The token names its issuer itself; only that issuer's keys can then prove it.
        provider.url == token.issuer() && provider.is_of(&arn.account)
    });
    let provider = provider.ok_or_else(|| {
        let message = format!("No OpenIDConnect provider found in your account for {}", token.issuer());
        Refusal::invalid_token(message)
    })?;
    let claims = provider.keys.verify(&token).await.map_err(|unproved| {
        let message = match &unproved {
            Unproved::Token(super::jwt::Error::BadSignature { .. }) => "The token's signature is not valid",
            // Two spaces, as AWS writes it.
            _ => {
                "Couldn't retrieve verification key from your identity provider,  please reference \
                 AssumeRoleWithWebIdentity documentation for requirements"
            }
        };
        Refusal::invalid_token(message).because(unproved.to_string())
    })?;
    record.subject.clone_from(&claims.sub);

    let now = world.now();
    check_times(&claims, now)?;
    let Some(audience) = claims.aud.iter().find(|aud| provider.audiences.contains(aud)) else {
        let reason = format!("the token's {:?}, the provider's {:?}", claims.aud, provider.audiences);
        return Err(Refusal::invalid_token("Incorrect token audience").because(reason));
    };

    let SessionClaims { tags, source_identity } = SessionClaims::read(&claims.aws)?;
    let packed_policy_size = wanted.packed_policy_size(&tags)?;
    let provider_arn =
        format!("arn:{}:iam::{}:oidc-provider/{}", arn.partition, arn.account, provider.name());
    let mut context = HashMap::from([("sts:rolesessionname".to_owned(), vec![wanted.session.clone()])]);
    context.insert(format!("{}:sub", provider.name()).to_ascii_lowercase(), vec![claims.sub.clone()]);
    context.insert(format!("{}:aud", provider.name()).to_ascii_lowercase(), claims.aud.clone());
    context.extend(source_identity.clone().map(|id| ("sts:sourceidentity".to_owned(), vec![id])));
    context.extend(tags.iter().map(requested));
    let request = Request { caller: Caller::Federated(provider_arn.clone()), context };
    let denied = |action: &str| Refusal::new("AccessDenied", format!("Not authorized to perform {action}"));
    let web_identity = "sts:AssumeRoleWithWebIdentity";
    let role = world.role(&arn).ok_or_else(|| denied(web_identity).because("the file has no such role"))?;
    let actions = [
        (web_identity, true),
        ("sts:TagSession", !tags.is_empty()),
        ("sts:SetSourceIdentity", source_identity.is_some()),
    ];
    for (action, _) in actions.iter().filter(|(_, needed)| *needed) {
        role.trust.allows(action, &request).map_err(|reason| denied(action).because(reason))?;
    }

    let duration = duration(&wanted, &role)?;
    let session = issue(world, &role, &wanted.session, source_identity, tags, packed_policy_size, duration);
    Ok(Answer::WebIdentity {
        session,
        provider: provider_arn,
        audience: audience.clone(),
        subject: claims.sub.clone(),
    })
}

/// A role for whoever signed the call.
pub(crate) fn assume_role(
    world: &World,
    parts: &Parts,
    body: &[u8],
    mut params: Params,
    record: &mut Record,
) -> Result<Answer, Refusal> {
    let signer = signer(world, parts, body)?;
    record.subject.clone_from(&signer.arn);
    let wanted = params.wanted();
    let extra = params.wanted_of_assume_role()?;
    params.check()?;
    let arn = role_arn(&wanted)?;
    record.role = arn.to_string();
    record.session.clone_from(&wanted.session);
    let packed_policy_size = wanted.packed_policy_size(&extra.tags)?;
    let denied = |action: &str| {
        let who = &signer.arn;
        Refusal::new(
            "AccessDenied",
            format!("User: {who} is not authorized to perform: {action} on resource: {arn}"),
        )
    };
    if params.text("SerialNumber").is_some() || params.text("TokenCode").is_some() {
        return Err(denied("sts:AssumeRole").because("the emulator knows no MFA devices"));
    }
    let role =
        world.role(&arn).ok_or_else(|| denied("sts:AssumeRole").because("the file has no such role"))?;

    // A source identity stays for the whole chain.
    let inherited = signer.session.as_ref().and_then(|session| session.source_identity.clone());
    if let (Some(inherited), Some(asked)) = (&inherited, &extra.source_identity)
        && inherited != asked
    {
        return Err(denied("sts:SetSourceIdentity").because("the session has another source identity"));
    }
    let source_identity = inherited.or(extra.source_identity);

    // So do its transitive tags, as they are.
    let of_signer = signer.session.as_ref().map_or(&[][..], |session| &session.tags);
    let inherited: Vec<&Tag> = of_signer.iter().filter(|tag| tag.transitive).collect();
    if extra.tags.iter().any(|tag| inherited.iter().any(|other| other.key.eq_ignore_ascii_case(&tag.key))) {
        return Err(Refusal::new(
            "InvalidParameterValue",
            "One of the specified transitive tag keys can't be set because it conflicts with a transitive tag key \
             from the calling session.",
        ));
    }

    let principal_arn = signer.session.as_ref().map_or(&*signer.arn, |session| session.role.as_str());
    let mut context: HashMap<String, Vec<String>> = HashMap::from([
        ("sts:rolesessionname".to_owned(), vec![wanted.session.clone()]),
        ("aws:principalarn".to_owned(), vec![principal_arn.to_owned()]),
        ("aws:principalaccount".to_owned(), vec![signer.account.clone()]),
    ]);
    context.extend(extra.external_id.map(|id| ("sts:externalid".to_owned(), vec![id])));
    context.extend(source_identity.clone().map(|id| ("sts:sourceidentity".to_owned(), vec![id])));
    context.extend(extra.tags.iter().map(requested));
    let held =
        |tag: &Tag| (format!("aws:principaltag/{}", tag.key.to_ascii_lowercase()), vec![tag.value.clone()]);
    context.extend(of_signer.iter().map(held));
    let arns = vec![signer.arn.clone(), principal_arn.to_owned()];
    let request = Request { caller: Caller::Aws { arns, account: signer.account.clone() }, context };
    let actions = [
        ("sts:AssumeRole", true),
        ("sts:TagSession", !extra.tags.is_empty() || !inherited.is_empty()),
        ("sts:SetSourceIdentity", source_identity.is_some()),
    ];
    for (action, _) in actions.iter().filter(|(_, needed)| *needed) {
        role.trust.allows(action, &request).map_err(|reason| denied(action).because(reason))?;
    }

    let duration = duration(&wanted, &role)?;
    if signer.session.is_some() && duration > CHAIN_LIMIT {
        return Err(Refusal::validation(
            "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining",
        ));
    }
    let tags = inherited.into_iter().cloned().chain(extra.tags).collect();
    let session = issue(world, &role, &wanted.session, source_identity, tags, packed_policy_size, duration);
    Ok(Answer::AssumeRole(session))
}

/// Who signed this?
pub(crate) fn caller_identity(
    world: &World,
    parts: &Parts,
    body: &[u8],
    record: &mut Record,
) -> Result<Answer, Refusal> {
    let signer = signer(world, parts, body)?;
    record.subject.clone_from(&signer.arn);
    Ok(Answer::CallerIdentity { arn: signer.arn, user_id: signer.user_id, account: signer.account })
}

/// The user or session whose secret key signed the call.
fn signer(world: &World, parts: &Parts, body: &[u8]) -> Result<Signer, Refusal> {
    let unknown =
        || Refusal::new("InvalidClientTokenId", "The security token included in the request is invalid.");
    let signed = Signed::find(parts)?;
    let now = world.now();
    if let Some(user) = world.account.users.iter().find(|user| user.access_key_id == signed.access_key_id) {
        if signed.session_token.is_some() {
            return Err(unknown().because("a user's key comes without a session token"));
        }
        signed.verify(parts, body, &user.secret, now)?;
        let arn = &user.arn;
        return Ok(Signer {
            arn: arn.text.clone(),
            user_id: arn.id(),
            account: arn.account.clone(),
            session: None,
        });
    }
    let session = {
        let state = world.state.lock().unwrap_or_else(PoisonError::into_inner);
        let session = state.sessions.find(&signed.access_key_id);
        let session = session.ok_or_else(|| unknown().because("nobody here issued this access key"))?;
        let token = signed.session_token.as_ref();
        if !token.is_some_and(|token| state.sessions.token_matches(session, token)) {
            return Err(unknown().because("the session token is not the one issued with this access key"));
        }
        session.clone()
    };
    // The signature comes first: only who holds the secret may learn that the session has ended.
    signed.verify(parts, body, &session.secret, now)?;
    if session.expires <= now {
        return Err(Refusal::new("ExpiredToken", "The security token included in the request is expired"));
    }
    Ok(Signer {
        arn: session.role.session_arn(&session.name),
        user_id: format!("{}:{}", session.role.id(), session.name),
        account: session.role.account.clone(),
        session: Some(session),
    })
}

/// The condition key of a tag that a call asks for.
fn requested(tag: &Tag) -> (String, Vec<String>) {
    (format!("aws:requesttag/{}", tag.key.to_ascii_lowercase()), vec![tag.value.clone()])
}

fn role_arn(wanted: &Wanted) -> Result<RoleArn, Refusal> {
    RoleArn::parse(&wanted.role).ok_or_else(|| Refusal::validation("Request ARN is invalid"))
}

fn check_times(claims: &Claims, now: Timestamp) -> Result<(), Refusal> {
    #[allow(clippy::cast_precision_loss, reason = "seconds since 1970 fit a double for millions of years")]
    let seconds = now.as_second() as f64;
    if claims.exp <= seconds {
        return Err(Refusal::new(
            "ExpiredTokenException",
            // No space before the second number, as AWS writes it.
            format!(
                "Token expired: current date/time {seconds} must be before the expiration date/time{}",
                claims.exp
            ),
        ));
    }
    for (claim, at) in [("nbf", claims.nbf), ("iat", Some(claims.iat))] {
        if let Some(at) = at.filter(|at| *at > seconds + CLOCK_SKEW) {
            let message =
                format!("Token is not yet valid: current date/time {seconds} is before its {claim} {at}");
            return Err(Refusal::invalid_token(message));
        }
    }
    Ok(())
}

fn duration(wanted: &Wanted, role: &Role) -> Result<Duration, Refusal> {
    let asked = wanted.duration.map_or(DEFAULT_DURATION, Duration::from_secs);
    if asked > role.max_session {
        let message = "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.";
        return Err(Refusal::validation(message));
    }
    Ok(asked)
}

fn issue(
    world: &World,
    role: &Role,
    name: &str,
    source_identity: Option<String>,
    tags: Vec<Tag>,
    packed_policy_size: Option<u32>,
    duration: Duration,
) -> NewSession {
    let now = world.now();
    // Whole seconds, so that what is honoured is what was said.
    let expires = Timestamp::from_second(now.as_second()).unwrap_or(now)
        + SignedDuration::from_secs(i64::try_from(duration.as_secs()).unwrap_or(i64::MAX));
    let mut state = world.state.lock().unwrap_or_else(PoisonError::into_inner);
    NewSession {
        credentials: state.sessions.issue(&role.arn, name, source_identity.clone(), tags, now, expires),
        arn: role.arn.session_arn(name),
        role_id: format!("{}:{name}", role.arn.id()),
        source_identity,
        packed_policy_size,
    }
}
