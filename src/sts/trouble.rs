//! What went wrong on the way to STS, in words that say what to do: certificates, plain http at a TLS port, proxies, and
//! answers that are not an STS's.

use std::error::Error as StdError;
use std::io;

use aws_sdk_sts::error::{ConnectorError, ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use rustls::CertificateError;

use super::{CONNECT, Error, StsClient};
use crate::role::{RoleArn, RolePlan};

/// An answer's beginning says whose it is.
const BEGINNING: usize = 2048;

impl StsClient {
    /// May this STS be asked for `role`?
    ///
    /// # Errors
    /// [`Error::Foreign`]: STS would say no, in words that name neither partition.
    pub fn knows(&self, role: &RoleArn) -> Result<(), Error> {
        match self.endpoint.foreign(role) {
            None => Ok(()),
            Some((theirs, ours)) => {
                Err(Error::Foreign { role: role.to_string(), theirs: theirs.to_owned(), ours })
            }
        }
    }

    /// What a failed call means, and STS's own words for the log.
    pub(super) fn trouble<E>(&self, plan: &RolePlan, err: &SdkError<E, HttpResponse>) -> (Error, String)
    where
        E: ProvideErrorMetadata,
    {
        let answered = |answer: &HttpResponse, code: Option<&str>, message: &str| {
            let status = answer.status().as_u16();
            if let Some(code) = code {
                return (Error::from_answer(plan, status, Some(code), message), message.to_owned());
            }
            let body = String::from_utf8_lossy(answer.body().bytes().unwrap_or_default());
            if let Some((code, message)) = unwrapped(&body) {
                return (Error::from_answer(plan, status, Some(code), message), message.to_owned());
            }
            let headers = answer.headers();
            let whose = whose(status, headers.get("location"), headers.get("content-type"), &body);
            (Error::Away(format!("{}: HTTP status {status}, {whose}", self.way())), String::new())
        };
        let away = |why: String| (Error::Away(format!("{}: {why}", self.way())), String::new());
        match err {
            SdkError::ServiceError(answer) => {
                answered(answer.raw(), answer.err().code(), answer.err().message().unwrap_or_default())
            }
            SdkError::ResponseError(answer) => answered(answer.raw(), None, ""),
            SdkError::TimeoutError(_) => away("no answer within the deadline".into()),
            SdkError::DispatchFailure(failure) if failure.is_timeout() => {
                away(format!("no connection within {} s", CONNECT.as_secs()))
            }
            SdkError::DispatchFailure(failure) => away(
                failure
                    .as_connector_error()
                    .map_or_else(|| "no connection".into(), |err| self.no_connection(err)),
            ),
            _ => away("the request could not be made".into()),
        }
    }

    /// Whom the message is about.
    fn way(&self) -> String {
        match &self.settings.proxy {
            None => self.url().to_owned(),
            Some(proxy) => format!("{} by way of the proxy {proxy}", self.url()),
        }
    }

    fn no_connection(&self, err: &ConnectorError) -> String {
        let causes = causes(err);
        let find = |prefix: &str| {
            causes.iter().find_map(|err| Some(err.to_string().strip_prefix(prefix)?.to_owned()))
        };
        let last = causes.last().map(ToString::to_string).unwrap_or_default();
        let found = causes.iter().find_map(|err| err.downcast_ref::<rustls::Error>()).map_or(last, tls);
        // hyper-util's own error has no public name.
        match find("tunnel error: ").as_deref() {
            Some("proxy authorization required") => {
                "the proxy asks for a user and password (407): put them into HTTPS_PROXY, as in \
                 http://USER:PASSWORD@HOST:PORT"
                    .into()
            }
            Some("failed to create underlying connection") => format!("the proxy cannot be reached: {found}"),
            Some(_) => {
                "the proxy refused the tunnel: does it allow CONNECT to this host, and is it an HTTP proxy? \
                        NO_PROXY keeps a host away from it"
                    .into()
            }
            None => {
                let garbled = |err: &hyper::Error| err.is_parse() || err.is_incomplete_message();
                let garbled = causes.iter().filter_map(|err| err.downcast_ref()).any(garbled);
                match garbled && self.url().starts_with("http:") {
                    true => format!("it does not speak plain HTTP at this port: is it https://? ({found})"),
                    false => format!("no connection: {found}"),
                }
            }
        }
    }
}

fn tls(err: &rustls::Error) -> String {
    let hint = match err {
        rustls::Error::InvalidCertificate(wrong) => match wrong {
            // A renewed authority often has the name of the last one: then it is the signature that does not fit.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "nothing that this agent trusts has signed its certificate: put its CA into --sts-ca-bundle"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "its certificate is for another name: --sts-endpoint-url must have one of the certificate's"
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "its certificate has expired, or this node's clock is ahead"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet, or this node's clock is behind"
            }
            _ => "its certificate is not accepted",
        },
        rustls::Error::InvalidMessage(_) => "it does not speak TLS at this port: is it http://?",
        rustls::Error::AlertReceived(_) | rustls::Error::PeerIncompatible(_) => {
            "it refuses TLS as this agent speaks it: 1.2 or 1.3, with AES-GCM"
        }
        _ => "TLS with it failed",
    };
    format!("{hint} ({err})")
}

/// The error and what lies under it, an [`io::Error`]'s payload included, which its own `source` leaves out.
fn causes<'a>(err: &'a (dyn StdError + 'static)) -> Vec<&'a (dyn StdError + 'static)> {
    let mut causes = vec![err];
    let mut next = Some(err);
    while let Some(err) = next {
        let payload = err.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match payload {
            Some(payload) => Some(payload as &(dyn StdError + 'static)),
            None => err.source(),
        };
        causes.extend(next);
    }
    causes
}

/// Code and message of an error in S3's shape, `<Error><Code>…`, without STS's `<ErrorResponse>` round it: Ceph's, and any
/// S3's that is taken for an STS.
fn unwrapped(body: &str) -> Option<(&str, &str)> {
    let error = &body[body.find("<Error>")?..];
    let field = |name: &str| {
        let (_, rest) = error.split_once(&format!("<{name}>"))?;
        Some(rest.split_once(&format!("</{name}>"))?.0)
    };
    let code = field("Code").filter(|code| (1..=64).contains(&code.len()))?;
    code.bytes()
        .all(|byte| byte.is_ascii_alphanumeric())
        .then(|| (code, field("Message").unwrap_or_default()))
}

/// Whose answer it is, if it is not an STS's.
fn whose(status: u16, location: Option<&str>, content_type: Option<&str>, body: &str) -> String {
    let start: String = body.chars().take(BEGINNING).collect::<String>().to_ascii_lowercase();
    let html = content_type.is_some_and(|kind| kind.starts_with("text/html"))
        || start.trim_start().starts_with("<!doctype html")
        || start.trim_start().starts_with("<html");
    if (300..400).contains(&status) {
        let to = location.and_then(|location| location.parse::<http::Uri>().ok());
        let to = to.as_ref().and_then(http::Uri::authority).map_or("elsewhere", |to| to.as_str());
        // A token is not sent where nobody told us to.
        return format!(
            "it redirects to {to}, which is not followed: --sts-endpoint-url must name the STS itself"
        );
    }
    if start.contains("http request") && start.contains("https") {
        return "it does not speak plain HTTP at this port: is it https://?".into();
    }
    match status {
        407 => "the proxy asks for a user and password: put them into HTTP_PROXY, as in http://USER:PASSWORD@HOST:PORT".into(),
        _ if html => {
            "a web page and not an STS's answer: a proxy's or a login's, or the wrong port or path in --sts-endpoint-url".into()
        }
        _ if start.contains("<listallmybucketsresult") => {
            "an S3's answer and not an STS's: --sts-endpoint-url must name the port or path of the STS".into()
        }
        _ => "and nothing that an STS says".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_in_s3s_shape_has_a_code_and_nothing_else_has() {
        let ceph = "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code><Message></Message><RequestId>tx1</RequestId></Error>";
        assert_eq!(unwrapped(ceph), Some(("AccessDenied", "")));
        for none in [
            "",
            "<Error>",
            "<Error></Error>",
            "<Error><Code></Code></Error>",
            "<Error><Code>a b</Code></Error>",
        ] {
            assert_eq!(unwrapped(none), None, "{none}");
        }
        assert_eq!(unwrapped("<Code>AccessDenied</Code><Error>"), None);
    }

    #[test]
    fn a_redirect_shows_no_more_than_where_it_leads() {
        let whose = whose(302, Some("https://login.example.com/?token=s3cr3t"), None, "");
        assert!(whose.contains("login.example.com") && !whose.contains("s3cr3t"), "{whose}");
    }
}
