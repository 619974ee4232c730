//! The hop that needs no credentials of ours: AssumeRoleWithWebIdentity.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_sdk_sts::config::ConfigBag;
use aws_sdk_sts::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_sts::error::{BoxError, ProvideErrorMetadata, SdkError};
use aws_sdk_sts::operation::RequestId;
use aws_sdk_sts::operation::assume_role_with_web_identity::{
    AssumeRoleWithWebIdentityError, AssumeRoleWithWebIdentityOutput,
};
use aws_sdk_sts::types::PolicyDescriptorType;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use jiff::fmt::rfc2822;

use super::{Error, Sts, StsClient};
use crate::credentials::Credentials;
use crate::role::RolePlan;
use crate::time;
use crate::token::BoundToken;

/// What `sts-regional-endpoints: "false"` asks for, in the aws partition.
const GLOBAL_ENDPOINT: &str = "https://sts.amazonaws.com";

impl Sts for StsClient {
    fn assume_role_with_web_identity<'a>(
        &'a self,
        plan: &'a RolePlan,
        token: &'a BoundToken,
    ) -> BoxFuture<'a, Result<Credentials, Error>> {
        Box::pin(async move {
            let policies =
                plan.policy_arns.iter().map(|arn| PolicyDescriptorType::builder().arn(arn).build()).collect();
            let clock = ServerClock::default();
            let mut call = self
                .client
                .assume_role_with_web_identity()
                .role_arn(plan.role.as_str())
                .role_session_name(plan.session_name.as_str())
                .web_identity_token(token.expose())
                .duration_seconds(plan.session_duration.as_secs() as i32)
                .set_policy_arns(if plan.policy_arns.is_empty() { None } else { Some(policies) })
                .customize()
                .interceptor(clock.clone());
            if plan.global_endpoint && !self.custom_endpoint {
                call = call.config_override(aws_sdk_sts::Config::builder().endpoint_url(GLOBAL_ENDPOINT));
            }
            match call.send().await {
                Ok(output) => credentials(output, plan.session_duration, clock.date()),
                Err(err) => Err(sorted(plan, token, &err)),
            }
        })
    }
}

fn credentials(
    output: AssumeRoleWithWebIdentityOutput,
    asked: Duration,
    server: Option<Timestamp>,
) -> Result<Credentials, Error> {
    let request_id = output.request_id().map(str::to_owned);
    #[expect(deprecated, reason = "older STSs, and every one beside AWS's, know only this figure")]
    let packed_policy_percent = output.packed_policy_size;
    let no_answer = |what: &str| Error::Away(format!("its answer has no {what}"));
    let keys = output.credentials.ok_or_else(|| no_answer("credentials"))?;
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

fn sorted(
    plan: &RolePlan,
    token: &BoundToken,
    err: &SdkError<AssumeRoleWithWebIdentityError, HttpResponse>,
) -> Error {
    let sorted = match err {
        SdkError::ServiceError(answer) => {
            let status = answer.raw().status().as_u16();
            let message = answer.err().message().unwrap_or_default();
            Error::from_answer(plan.role.as_str(), status, answer.err().code(), message)
        }
        SdkError::TimeoutError(_) => Error::Away("no answer within the deadline".into()),
        SdkError::DispatchFailure(failure) if failure.is_timeout() => {
            Error::Away("no connection within 1 s".into())
        }
        SdkError::DispatchFailure(failure) => Error::Away(format!(
            "no connection: {}",
            failure.as_connector_error().map_or_else(|| "unknown".into(), |err| root_cause(err))
        )),
        SdkError::ResponseError(answer) => {
            Error::Away(format!("HTTP status {} with an answer that is none", answer.raw().status().as_u16()))
        }
        _ => Error::Away("the request could not be made".into()),
    };
    // STS's own words go to the log alone: they may name other objects.
    let upstream = match err {
        SdkError::ServiceError(answer) => loggable(answer.err().message().unwrap_or_default(), token),
        _ => String::new(),
    };
    tracing::warn!(
        service_account = %plan.account, role.arn = %plan.role, code = sorted.code(), error = %sorted,
        sts.message = upstream, sts.request_id = err.request_id().unwrap_or_default(), "no credentials from STS",
    );
    sorted
}

/// AWS never repeats the token in its words; another STS, or a proxy that shows what it was sent, may.
fn loggable(message: &str, token: &BoundToken) -> String {
    message.replace(token.expose(), "<redacted>").chars().take(500).collect()
}

fn root_cause(err: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = err;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Reads the `Date` header of STS's answer.
#[derive(Clone, Debug, Default)]
struct ServerClock(Arc<Mutex<Option<Timestamp>>>);

impl ServerClock {
    fn date(&self) -> Option<Timestamp> {
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

    #[test]
    fn a_token_that_sts_repeats_is_not_logged() {
        let token = BoundToken::new("eyJhbGciOi.eyJzdWIi.c2lnbmF0dXJl".into(), Duration::from_secs(600));
        let message = format!("{}: cannot parse {}{}", "x".repeat(450), token.expose(), "y".repeat(500));
        let logged = loggable(&message, &token);
        assert!(logged.contains("<redacted>") && !logged.contains("eyJ"), "{logged}");
        assert_eq!(logged.chars().count(), 500);
    }

    /// STS's answer as the SDK decodes it; a session of `life` from now.
    fn answer(key: &str, secret: &str, life: i64) -> AssumeRoleWithWebIdentityOutput {
        let expiration = aws_smithy_types::DateTime::from_secs(time::now().as_second() + life);
        let keys = aws_sdk_sts::types::Credentials::builder()
            .access_key_id(key)
            .secret_access_key(secret)
            .session_token("token")
            .expiration(expiration);
        AssumeRoleWithWebIdentityOutput::builder().credentials(keys.build().unwrap()).build()
    }

    #[test]
    fn an_answer_without_all_its_fields_or_its_time_is_no_answer() {
        let hour = Duration::from_secs(3600);
        for (key, secret, life) in [("", "secret", 3600), ("ASIA", "", 3600), ("ASIA", "secret", -1)] {
            let err = credentials(answer(key, secret, life), hour, None).unwrap_err();
            assert_eq!(err.code(), "StsUnavailable", "{key:?} {secret:?} {life}");
        }
        let none = AssumeRoleWithWebIdentityOutput::builder().build();
        assert!(credentials(none, hour, None).is_err());
    }

    #[test]
    fn life_is_what_stss_own_clock_leaves_and_never_more_than_was_asked_for() {
        let hour = Duration::from_secs(3600);
        // This node's clock is ten hours behind STS's.
        let server = time::plus(time::now(), 10 * hour);
        let life = credentials(answer("ASIA", "secret", 11 * 3600), hour, Some(server)).unwrap().life;
        assert!((hour - Duration::from_secs(2)..=hour).contains(&life), "{life:?}");
        assert_eq!(credentials(answer("ASIA", "secret", 11 * 3600), hour, None).unwrap().life, hour);
        let behind = time::plus(time::now(), hour / 2);
        let life = credentials(answer("ASIA", "secret", 3600), hour, Some(behind)).unwrap().life;
        assert!(life <= hour / 2, "{life:?}");
    }
}
