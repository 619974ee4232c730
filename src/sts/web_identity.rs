//! The hop that needs no credentials of ours: AssumeRoleWithWebIdentity.

use super::answer::{Answer, ServerClock};
use super::{Error, StsClient, policies};
use crate::credentials::Credentials;
use crate::role::RolePlan;
use crate::token::BoundToken;

impl StsClient {
    pub(super) async fn call_with_token(
        &self,
        plan: &RolePlan,
        token: &BoundToken,
    ) -> Result<Credentials, Error> {
        self.knows(&plan.role)?;
        let clock = ServerClock::default();
        let call = self
            .client()
            .await
            .assume_role_with_web_identity()
            .role_arn(plan.role.as_str())
            .role_session_name(plan.session_name.as_str())
            .web_identity_token(token.expose())
            .duration_seconds(plan.session_duration.as_secs() as i32)
            .set_policy_arns(policies(plan))
            .customize()
            .interceptor(clock.clone())
            .config_override(self.of_plan(plan));
        match call.send().await {
            Ok(output) => Answer::from(output).credentials(plan.session_duration, clock.date()),
            Err(err) => Err(self.sorted(plan, token.expose(), &err)),
        }
    }
}
