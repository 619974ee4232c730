//! The hop that is signed: AssumeRole, with the keys of the hop before, or the agent's own.
//!
//! This node's clock may be wrong by hours, and STS refuses a signature that is more than five minutes off: the SDK signs by the
//! time that the first hop's answer has told.

use std::time::Duration;

use aws_sdk_sts::config::Credentials as Signer;
use aws_sdk_sts::types::Tag;
use secrecy::ExposeSecret;

use super::answer::{Answer, ServerClock};
use super::{Error, StsClient, policies};
use crate::credentials::{Credentials, Keys};
use crate::role::plan::CHAIN_LIMIT;
use crate::role::{By, RolePlan};

impl StsClient {
    pub(super) async fn call_with_keys(&self, plan: &RolePlan, keys: &Keys) -> Result<Credentials, Error> {
        let By::AssumeRole { external_id, tags, source_identity, .. } = &plan.by else {
            unreachable!("only a plan that is had by AssumeRole gets here");
        };
        self.knows(&plan.role)?;
        let clock = ServerClock::default();
        let session_token = keys.session_token.as_ref().map(ExposeSecret::expose_secret);
        // Whether base credentials are a session is known here alone; a plan that stands on another has been cut before.
        let limit = if session_token.is_some() { CHAIN_LIMIT } else { Duration::MAX };
        let duration = plan.session_duration.min(limit);
        let signer = Signer::new(
            &keys.access_key_id,
            keys.secret_access_key.expose_secret(),
            session_token.map(str::to_owned),
            None,
            "rolecall",
        );
        let mut call = self
            .client()
            .await
            .assume_role()
            .role_arn(plan.role.as_str())
            .role_session_name(plan.session_name.as_str())
            .duration_seconds(duration.as_secs() as i32)
            .set_policy_arns(policies(plan))
            .set_external_id(external_id.as_deref().map(str::to_owned))
            .set_source_identity(source_identity.as_ref().map(|name| name.as_str().to_owned()));
        for tag in tags {
            let (key, value) = (tag.key(), tag.value());
            call = call.tags(Tag::builder().key(key).value(value).build().expect("it has a key and a value"));
            if tag.transitive {
                call = call.transitive_tag_keys(key);
            }
        }
        let call = call
            .customize()
            .interceptor(clock.clone())
            .config_override(self.of_plan(plan).credentials_provider(signer));
        match call.send().await {
            Ok(output) => {
                if duration < plan.session_duration {
                    plan.tell_cut(plan.session_duration);
                }
                Answer::from(output).credentials(duration, clock.date())
            }
            Err(err) => {
                // A user's own keys have no token.
                let secret = session_token.unwrap_or(keys.secret_access_key.expose_secret());
                Err(self.sorted(plan, secret, &err))
            }
        }
    }
}

#[cfg(test)]
mod tests;
