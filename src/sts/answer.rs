//! What both calls have in common: STS's answer, or its refusal, and its clock.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_sdk_sts::config::ConfigBag;
use aws_sdk_sts::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_sts::error::{BoxError, ProvideErrorMetadata, SdkError};
use aws_sdk_sts::operation::RequestId;
use aws_sdk_sts::operation::assume_role::AssumeRoleOutput;
use aws_sdk_sts::operation::assume_role_with_web_identity::AssumeRoleWithWebIdentityOutput;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use jiff::Timestamp;
use jiff::fmt::rfc2822;

use super::{Error, StsClient};
use crate::credentials::Credentials;
use crate::role::RolePlan;
use crate::time;

/// The part of both answers that is used.
pub(super) struct Answer {
    keys: Option<aws_sdk_sts::types::Credentials>,
    request_id: Option<String>,
    packed_policy_percent: Option<i32>,
}

impl From<AssumeRoleWithWebIdentityOutput> for Answer {
    #[expect(deprecated, reason = "older STSs, and every one beside AWS's, know only this figure")]
    fn from(output: AssumeRoleWithWebIdentityOutput) -> Self {
        let request_id = output.request_id().map(str::to_owned);
        Self { request_id, packed_policy_percent: output.packed_policy_size, keys: output.credentials }
    }
}

impl From<AssumeRoleOutput> for Answer {
    #[expect(deprecated, reason = "as above")]
    fn from(output: AssumeRoleOutput) -> Self {
        let request_id = output.request_id().map(str::to_owned);
        Self { request_id, packed_policy_percent: output.packed_policy_size, keys: output.credentials }
    }
}

impl Answer {
    /// `asked` is the duration that was asked for, `server` the time by STS's own clock.
    ///
    /// # Errors
    /// An answer that lacks something is none.
    pub(super) fn credentials(
        self,
        asked: Duration,
        server: Option<Timestamp>,
    ) -> Result<Credentials, Error> {
        let Self { keys, request_id, packed_policy_percent } = self;
        let no_answer = |what: &str| Error::Away(format!("its answer has no {what}"));
        let keys = keys.ok_or_else(|| no_answer("credentials"))?;
        // An answer is only an answer with all four fields: an SDK takes empty keys for success.
        for (name, value) in [
            ("AccessKeyId", &keys.access_key_id),
            ("SecretAccessKey", &keys.secret_access_key),
            ("SessionToken", &keys.session_token),
        ] {
            if value.is_empty() {
                return Err(no_answer(name));
            }
        }
        let expiration =
            Timestamp::from_second(keys.expiration.secs()).map_err(|_| no_answer("usable Expiration"))?;
        // STS's own clock says what is left; this node's may be wrong by hours. It never exceeds what was asked for.
        let life = time::between(server.unwrap_or_else(time::now), expiration).min(asked);
        if life.is_zero() {
            return Err(no_answer("Expiration that lies in the future"));
        }
        Ok(Credentials {
            access_key_id: keys.access_key_id,
            secret_access_key: keys.secret_access_key.into(),
            session_token: keys.session_token.into(),
            expiration,
            life,
            request_id,
            packed_policy_percent,
        })
    }
}

impl StsClient {
    /// Says what went wrong, here and in the log. `secret` is what the call showed.
    pub(super) fn sorted<E>(&self, plan: &RolePlan, secret: &str, err: &SdkError<E, HttpResponse>) -> Error
    where
        E: ProvideErrorMetadata,
        SdkError<E, HttpResponse>: RequestId,
    {
        let (sorted, upstream) = self.trouble(plan, err);
        // STS's own words go to the log alone: they may name other objects.
        tracing::warn!(
            service_account = %plan.account, role.arn = %plan.role, operation = plan.by.operation().as_str(),
            code = sorted.code(), error = %sorted, sts.message = loggable(&upstream, secret),
            sts.request_id = err.request_id().unwrap_or_default(), "no credentials from STS",
        );
        sorted
    }
}

/// AWS never repeats in its words what it was shown; another STS, or a proxy that shows what it was sent, may.
fn loggable(message: &str, secret: &str) -> String {
    let message = if secret.is_empty() { message.to_owned() } else { message.replace(secret, "<redacted>") };
    message.chars().take(500).collect()
}

/// Reads the `Date` header of STS's answer.
#[derive(Clone, Debug, Default)]
pub(super) struct ServerClock(Arc<Mutex<Option<Timestamp>>>);

impl ServerClock {
    pub(super) fn date(&self) -> Option<Timestamp> {
        *self.0.lock().expect("nothing panics while it holds this lock")
    }
}

impl Intercept for ServerClock {
    fn name(&self) -> &'static str {
        "ServerClock"
    }

    fn read_after_transmit(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        // RFC 9110, 6.6.1: HTTP's dates say GMT, which RFC 2822 allows as an obsolete zone.
        let date = context.response().headers().get("date").and_then(|date| rfc2822::parse(date).ok());
        *self.0.lock().expect("nothing panics while it holds this lock") = date.map(|date| date.timestamp());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::BoundToken;

    #[test]
    fn a_token_that_sts_repeats_is_not_logged() {
        let token = BoundToken::new("eyJhbGciOi.eyJzdWIi.c2lnbmF0dXJl".into(), Duration::from_secs(600));
        let message = format!("{}: cannot parse {}{}", "x".repeat(450), token.expose(), "y".repeat(500));
        let logged = loggable(&message, token.expose());
        assert!(logged.contains("<redacted>") && !logged.contains("eyJ"), "{logged}");
        assert_eq!(logged.chars().count(), 500);
    }

    /// STS's answer as the SDK decodes it; a session of `life` from now.
    fn answer(key: &str, secret: &str, life: i64) -> Answer {
        let expiration = aws_smithy_types::DateTime::from_secs(time::now().as_second() + life);
        let keys = aws_sdk_sts::types::Credentials::builder()
            .access_key_id(key)
            .secret_access_key(secret)
            .session_token("token")
            .expiration(expiration);
        AssumeRoleWithWebIdentityOutput::builder().credentials(keys.build().unwrap()).build().into()
    }

    #[test]
    fn an_answer_without_all_its_fields_or_its_time_is_no_answer() {
        let hour = Duration::from_secs(3600);
        for (key, secret, life) in [("", "secret", 3600), ("ASIA", "", 3600), ("ASIA", "secret", -1)] {
            let err = answer(key, secret, life).credentials(hour, None).unwrap_err();
            assert_eq!(err.code(), "StsUnavailable", "{key:?} {secret:?} {life}");
        }
        let none = Answer::from(AssumeRoleWithWebIdentityOutput::builder().build());
        assert!(none.credentials(hour, None).is_err());
    }

    #[test]
    fn life_is_what_stss_own_clock_leaves_and_never_more_than_was_asked_for() {
        let hour = Duration::from_secs(3600);
        // This node's clock is ten hours behind STS's.
        let server = time::plus(time::now(), 10 * hour);
        let life = answer("ASIA", "secret", 11 * 3600).credentials(hour, Some(server)).unwrap().life;
        assert!((hour - Duration::from_secs(2)..=hour).contains(&life), "{life:?}");
        assert_eq!(answer("ASIA", "secret", 11 * 3600).credentials(hour, None).unwrap().life, hour);
        let behind = time::plus(time::now(), hour / 2);
        let life = answer("ASIA", "secret", 3600).credentials(hour, Some(behind)).unwrap().life;
        assert!(life <= hour / 2, "{life:?}");
    }
}
