//! Which URL is STS's: of a region, its FIPS or dual-stack name, another partition's, or one of your own.
//!
//! The names are the AWS SDK's to know; here they are asked for once, at the start, so that a combination that has none
//! is a message then and not a failure of every call.

use aws_sdk_sts::config::endpoint::{DefaultResolver, Params, ResolveEndpoint};
use futures_util::FutureExt;

use super::connector::{CaBundle, Proxy};
use crate::role::RoleArn;

/// What a region's name begins with, outside the partition `aws`.
/// <https://docs.aws.amazon.com/general/latest/gr/rande.html>
const PARTITIONS: [(&str, &str); 8] = [
    ("cn-", "aws-cn"),
    ("aws-cn", "aws-cn"),
    ("us-gov-", "aws-us-gov"),
    ("us-iso-", "aws-iso"),
    ("us-isob-", "aws-iso-b"),
    ("eu-isoe-", "aws-iso-e"),
    ("us-isof-", "aws-iso-f"),
    ("eusc-", "aws-eusc"),
];
/// Signed for by calls to an STS that no region is known of: AWS's own default, and others take any.
const DEFAULT_REGION: &str = "us-east-1";

/// Where STS is, and how to get there.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// `--sts-endpoint-url`
    pub url: Option<String>,
    /// `--use-fips-endpoint`
    pub fips: bool,
    /// `--use-dualstack-endpoint`
    pub dual_stack: bool,
    /// `--sts-ca-bundle`
    pub ca_bundle: Option<CaBundle>,
    /// `HTTPS_PROXY`, or `HTTP_PROXY` where the URL is http.
    pub proxy: Option<Proxy>,
}

/// The URLs that calls go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// Of every call but those for `global`.
    pub(super) url: String,
    /// For plans that ask for the global endpoint, where AWS's SDKs would use it: in the old regions of the partition
    /// `aws`, with neither FIPS nor dual-stack. Elsewhere it does not exist, or its sessions are not accepted.
    pub(super) global: Option<String>,
    /// The partition whose roles this STS knows; an STS of one's own may know any.
    partition: Option<&'static str>,
}

impl Endpoint {
    /// As the AWS SDK resolves it.
    ///
    /// # Errors
    /// Why there is none, in the SDK's words.
    pub(super) fn resolve(region: &str, settings: &Settings) -> Result<Self, String> {
        let url = resolved(region, settings, false)?;
        // An URL of one's own is where everything goes.
        let global = if settings.url.is_none() { Some(resolved(region, settings, true)?) } else { None };
        Ok(Self {
            global: global.filter(|global| *global != url),
            url,
            partition: settings.url.is_none().then(|| partition_of(region)),
        })
    }

    /// The role's partition and this STS's, where they differ: STS there cannot know the role.
    pub(super) fn foreign<'a>(&self, role: &'a RoleArn) -> Option<(&'a str, &'static str)> {
        let ours = self.partition?;
        (role.partition() != ours).then(|| (role.partition(), ours))
    }
}

fn resolved(region: &str, settings: &Settings, global: bool) -> Result<String, String> {
    let params = Params::builder()
        .region(region)
        .use_fips(settings.fips)
        .use_dual_stack(settings.dual_stack)
        .use_global_endpoint(global)
        .set_endpoint(settings.url.clone())
        .build()
        .map_err(|err| err.to_string())?;
    let resolver = DefaultResolver::new();
    let endpoint = ResolveEndpoint::resolve_endpoint(&resolver, &params);
    let endpoint = endpoint.now_or_never().ok_or("the SDK's rules are still at work")?;
    Ok(endpoint.map_err(|err| err.to_string())?.url().to_owned())
}

fn partition_of(region: &str) -> &'static str {
    let known = PARTITIONS.into_iter().find(|(prefix, _)| region.starts_with(prefix));
    known.map_or("aws", |(_, partition)| partition)
}

/// The region in an STS endpoint's own name (`vpce-….sts.eu-west-1.vpce.amazonaws.com`), else AWS's default: what a
/// signature for `url` names when nobody says it.
pub fn region_of(url: &str) -> String {
    let url = url.parse::<http::Uri>().ok();
    let host = url.as_ref().and_then(http::Uri::host).unwrap_or_default();
    let mut labels = host.split('.').skip_while(|label| !matches!(*label, "sts" | "sts-fips")).skip(1);
    let region = labels.next().filter(|label| label.split('-').count() >= 3);
    region.unwrap_or(DEFAULT_REGION).to_owned()
}

#[cfg(test)]
#[path = "endpoint/tests.rs"]
mod tests;
