//! AWS Signature Version 4, from the verifier's side: was this request made with that secret key?
//!
//! Headers and presigned URLs both. Everything here is written by the caller; the one thing it cannot make up
//! is the MAC.

use std::collections::BTreeMap;

use http::request::Parts;
use jiff::{SignedDuration, Timestamp, civil, tz};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use ring::{digest, hmac};
use secrecy::{ExposeSecret as _, SecretString};

use super::error::Refusal;

/// AWS takes requests that are at most this far from its own clock.
const CLOCK_SKEW: SignedDuration = SignedDuration::from_mins(15);

/// The longest life of a presigned URL, seconds.
const MAX_EXPIRES: i64 = 604_800;

/// RFC 3986: everything but the unreserved characters is escaped.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A request's claim to be made by somebody, not yet checked.
#[derive(Debug)]
pub(crate) struct Signed {
    pub access_key_id: String,
    /// The session token that came along, for temporary keys.
    pub session_token: Option<SecretString>,
    signature: Vec<u8>,
    signed_headers: Vec<String>,
    /// `YYYYMMDD/REGION/sts/aws4_request`
    scope: [String; 4],
    /// As signed: `YYYYMMDDTHHMMSSZ`.
    date: String,
    made_at: Timestamp,
    /// How long a presigned URL lives; headers live as long as the clock's skew.
    expires: Option<SignedDuration>,
}

impl Signed {
    /// Finds the signature of a request, in its headers or in its query.
    ///
    /// # Errors
    /// `MissingAuthenticationToken` if there is none, `IncompleteSignature` if it cannot be read.
    pub(crate) fn find(parts: &Parts) -> Result<Self, Refusal> {
        let query = parts.uri.query().unwrap_or("");
        let presigned = query_value(query, "X-Amz-Signature").is_some();
        match (header(parts, "authorization")?, presigned) {
            (Some(_), true) => Err(incomplete("both the Authorization header and the query are signed")),
            (Some(authorization), false) => Self::from_header(parts, &authorization),
            (None, true) => Self::from_query(query),
            (None, false) => {
                Err(Refusal::new("MissingAuthenticationToken", "Request is missing Authentication Token"))
            }
        }
    }

    fn from_header(parts: &Parts, authorization: &str) -> Result<Self, Refusal> {
        let fields = authorization
            .strip_prefix("AWS4-HMAC-SHA256")
            .filter(|rest| rest.starts_with([' ', '\t']))
            .ok_or_else(|| incomplete("Authorization header requires the algorithm AWS4-HMAC-SHA256"))?;
        let mut named = BTreeMap::new();
        for field in fields.split(',') {
            let (name, value) = field
                .trim()
                .split_once('=')
                .ok_or_else(|| incomplete("Authorization header is malformed"))?;
            named.insert(name, value);
        }
        let field = |name: &str| {
            named
                .get(name)
                .copied()
                .ok_or_else(|| incomplete(&format!("Authorization header requires '{name}' parameter.")))
        };
        let date = header(parts, "x-amz-date")?
            .ok_or_else(|| incomplete("Authorization header requires existence of a 'X-Amz-Date' header."))?;
        let token = header(parts, "x-amz-security-token")?;
        let signed = Self::read(
            field("Credential")?,
            field("SignedHeaders")?,
            field("Signature")?,
            date,
            token,
            None,
        )?;
        // A date that is not signed could be moved by whoever recorded the request.
        if !signed.signed_headers.iter().any(|name| name == "x-amz-date") {
            return Err(incomplete("'X-Amz-Date' must be a 'SignedHeader' in the AWS Authorization."));
        }
        Ok(signed)
    }

    fn from_query(query: &str) -> Result<Self, Refusal> {
        let field = |name: &str| {
            query_value(query, name)
                .ok_or_else(|| incomplete(&format!("AWS query-string parameters must include '{name}'.")))
        };
        if field("X-Amz-Algorithm")? != "AWS4-HMAC-SHA256" {
            return Err(incomplete("X-Amz-Algorithm must be AWS4-HMAC-SHA256"));
        }
        let expires = field("X-Amz-Expires")?.parse::<i64>().ok().filter(|s| (1..=MAX_EXPIRES).contains(s));
        let expires =
            expires.ok_or_else(|| incomplete("X-Amz-Expires must be between 1 and 604800 seconds"))?;
        Self::read(
            &field("X-Amz-Credential")?,
            &field("X-Amz-SignedHeaders")?,
            &field("X-Amz-Signature")?,
            field("X-Amz-Date")?,
            query_value(query, "X-Amz-Security-Token"),
            Some(SignedDuration::from_secs(expires)),
        )
    }

    fn read(
        credential: &str,
        signed_headers: &str,
        signature: &str,
        date: String,
        session_token: Option<String>,
        expires: Option<SignedDuration>,
    ) -> Result<Self, Refusal> {
        let mut parts = credential.split('/').map(str::to_owned);
        let access_key_id = parts.next().unwrap_or_default();
        let scope: [String; 4] = parts
            .collect::<Vec<_>>()
            .try_into()
            .map_err(|_| incomplete("Credential must be KEY/DATE/REGION/SERVICE/aws4_request"))?;
        let signature = unhex(signature).ok_or_else(|| incomplete("Signature must be hexadecimal"))?;
        let made_at = parse_date(&date)
            .ok_or_else(|| incomplete("Date must be in ISO-8601 'basic format', YYYYMMDDTHHMMSSZ"))?;
        let signed_headers: Vec<String> = signed_headers.split(';').map(str::to_owned).collect();
        if !signed_headers.iter().any(|name| name == "host") {
            return Err(incomplete(
                "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.",
            ));
        }
        let session_token = session_token.map(SecretString::from);
        Ok(Self { access_key_id, session_token, signature, signed_headers, scope, date, made_at, expires })
    }

    /// Checks the signature over the request as it arrived, made with `secret`, around `now`.
    ///
    /// # Errors
    /// `SignatureDoesNotMatch`.
    pub(crate) fn verify(
        &self,
        parts: &Parts,
        body: &[u8],
        secret: &SecretString,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let [date, region, service, terminator] = &self.scope;
        if service != "sts" || terminator != "aws4_request" || region.is_empty() {
            return Err(mismatch("Credential should be scoped to correct service: 'sts'. "));
        }
        if !self.date.starts_with(date.as_str()) || date.len() != 8 {
            return Err(mismatch(
                "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date",
            ));
        }
        let mut key = hmac_sha256(format!("AWS4{}", secret.expose_secret()).as_bytes(), date.as_bytes());
        for part in [region, service, terminator] {
            key = hmac_sha256(key.as_ref(), part.as_bytes());
        }
        let to_sign = format!(
            "AWS4-HMAC-SHA256\n{}\n{}\n{}",
            self.date,
            self.scope.join("/"),
            hex(sha256(self.canonical(parts, body)?.as_bytes()).as_ref())
        );
        let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_ref());
        // Constant time: a byte-by-byte comparison would tell how much of a guess was right.
        hmac::verify(&key, to_sign.as_bytes(), &self.signature).map_err(|_| {
            mismatch(
                "The request signature we calculated does not match the signature you provided. Check your AWS \
                 Secret Access Key and signing method. Consult the service documentation for details.",
            )
        })?;
        self.check_clock(now)
    }

    fn check_clock(&self, now: Timestamp) -> Result<(), Refusal> {
        let (past, span) = match self.expires {
            Some(expires) => (expires, "the URL's life"),
            None => (CLOCK_SKEW, "15 min."),
        };
        let shown = |at: Timestamp| at.strftime("%Y%m%dT%H%M%SZ").to_string();
        if self.made_at + past < now {
            let then = shown(now - past);
            return Err(mismatch(&format!(
                "Signature expired: {} is now earlier than {then} ({} - {span})",
                self.date,
                shown(now)
            )));
        }
        if self.made_at > now + CLOCK_SKEW {
            let then = shown(now + CLOCK_SKEW);
            return Err(mismatch(&format!(
                "Signature not yet current: {} is still later than {then} ({} + 15 min.)",
                self.date,
                shown(now)
            )));
        }
        Ok(())
    }

    fn canonical(&self, parts: &Parts, body: &[u8]) -> Result<String, Refusal> {
        let mut headers = String::new();
        for name in &self.signed_headers {
            let value = header(parts, name)?
                .ok_or_else(|| incomplete(&format!("signed header '{name}' is not in the request")))?;
            let value = value.split_whitespace().collect::<Vec<_>>().join(" ");
            headers.push_str(&format!("{name}:{value}\n"));
        }
        Ok([
            parts.method.as_str(),
            parts.uri.path(),
            &canonical_query(parts.uri.query().unwrap_or("")),
            &headers,
            &self.signed_headers.join(";"),
            &hex(sha256(body).as_ref()),
        ]
        .join("\n"))
    }
}

/// Every parameter but the signature itself, escaped one way and sorted.
fn canonical_query(query: &str) -> String {
    let mut pairs: Vec<(String, String)> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .filter(|(name, _)| *name != "X-Amz-Signature")
        .map(|(name, value)| (re_escape(name), re_escape(value)))
        .collect();
    pairs.sort();
    pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

fn re_escape(text: &str) -> String {
    utf8_percent_encode(&percent_decode_str(text).decode_utf8_lossy(), ESCAPED).to_string()
}

fn query_value(query: &str, name: &str) -> Option<String> {
    form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

/// All values of a header, joined as SigV4 wants them.
fn header(parts: &Parts, name: &str) -> Result<Option<String>, Refusal> {
    let mut values = Vec::new();
    for value in parts.headers.get_all(name) {
        values.push(value.to_str().map_err(|_| incomplete("a header is not ASCII"))?);
    }
    Ok((!values.is_empty()).then(|| values.join(",")))
}

fn parse_date(text: &str) -> Option<Timestamp> {
    let date = civil::DateTime::strptime("%Y%m%dT%H%M%SZ", text).ok()?;
    (text.len() == 16).then(|| date.to_zoned(tz::TimeZone::UTC).ok().map(|zoned| zoned.timestamp()))?
}

fn hmac_sha256(key: &[u8], message: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message)
}

fn sha256(bytes: &[u8]) -> digest::Digest {
    digest::digest(&digest::SHA256, bytes)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> =
        text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect::<Option<_>>()?;
    digits
        .len()
        .is_multiple_of(2)
        .then(|| digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

fn incomplete(message: &str) -> Refusal {
    Refusal::new("IncompleteSignature", message)
}

fn mismatch(message: &str) -> Refusal {
    Refusal::new("SignatureDoesNotMatch", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
    const BODY: &[u8] = b"Action=GetCallerIdentity&Version=2011-06-15";

    /// Signed by botocore 1.43.11 for 2026-11-22T15:00:00Z, with the session token `token/+=`.
    fn by_header() -> Parts {
        let request = http::Request::post("/")
            .header("host", "127.0.0.1:9910")
            .header("content-type", "application/x-www-form-urlencoded; charset=utf-8")
            .header("x-amz-date", "20261122T150000Z")
            .header("x-amz-security-token", "token/+=")
            .header(
                "authorization",
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261122/eu-west-1/sts/aws4_request, \
                 SignedHeaders=content-type;host;x-amz-date;x-amz-security-token, \
                 Signature=46761e4ce6bfa7dc4936ba7510a6741f49ec3c46a68c4bb8b023988a87375ba5",
            );
        request.body(()).unwrap().into_parts().0
    }

    /// The same call as a URL that lives for 60 s.
    fn by_query() -> Parts {
        let request = http::Request::get(
            "/?Action=GetCallerIdentity&Version=2011-06-15&X-Amz-Algorithm=AWS4-HMAC-SHA256\
             &X-Amz-Credential=AKIDEXAMPLE%2F20261122%2Feu-west-1%2Fsts%2Faws4_request\
             &X-Amz-Date=20261122T150000Z&X-Amz-Expires=60&X-Amz-SignedHeaders=host\
             &X-Amz-Security-Token=token%2F%2B%3D\
             &X-Amz-Signature=89956858ce668dc48fa3358dd479e70df3c4eb875f456d3486b31568305199b2",
        )
        .header("host", "127.0.0.1:9910");
        request.body(()).unwrap().into_parts().0
    }

    /// The code of the answer, or `ok`.
    fn judge(parts: &Parts, body: &[u8], secret: &str, after: i64) -> &'static str {
        let now = parse_date("20261122T150000Z").unwrap() + SignedDuration::from_secs(after);
        let judged = Signed::find(parts).and_then(|signed| {
            assert_eq!(signed.access_key_id, "AKIDEXAMPLE");
            assert_eq!(signed.session_token.as_ref().unwrap().expose_secret(), "token/+=");
            signed.verify(parts, body, &SecretString::from(secret), now)
        });
        judged.map_or_else(|refusal| refusal.code, |()| "ok")
    }

    #[test]
    fn what_botocore_signs_is_believed() {
        assert_eq!(judge(&by_header(), BODY, SECRET, 0), "ok");
        assert_eq!(judge(&by_query(), b"", SECRET, 0), "ok");
    }

    #[test]
    fn a_changed_body_header_query_or_key_is_not() {
        assert_eq!(
            judge(&by_header(), b"Action=AssumeRole&Version=2011-06-15", SECRET, 0),
            "SignatureDoesNotMatch"
        );
        assert_eq!(judge(&by_header(), BODY, "another", 0), "SignatureDoesNotMatch");
        let mut other_host = by_header();
        other_host.headers.insert("host", "sts.amazonaws.com".parse().unwrap());
        assert_eq!(judge(&other_host, BODY, SECRET, 0), "SignatureDoesNotMatch");
        let mut longer = by_query();
        longer.uri = longer.uri.to_string().replace("Expires=60", "Expires=61").parse().unwrap();
        assert_eq!(judge(&longer, b"", SECRET, 0), "SignatureDoesNotMatch");
        let mut cut = by_header();
        let authorization = cut.headers["authorization"].to_str().unwrap();
        cut.headers.insert("authorization", authorization[..authorization.len() - 2].parse().unwrap());
        assert_eq!(judge(&cut, BODY, SECRET, 0), "SignatureDoesNotMatch");
    }

    #[test]
    fn a_signature_counts_within_fifteen_minutes_and_a_url_within_its_life() {
        for (after, expected) in
            [(900, "ok"), (901, "SignatureDoesNotMatch"), (-900, "ok"), (-901, "SignatureDoesNotMatch")]
        {
            assert_eq!(judge(&by_header(), BODY, SECRET, after), expected, "{after}");
        }
        assert_eq!(judge(&by_query(), b"", SECRET, 60), "ok");
        assert_eq!(judge(&by_query(), b"", SECRET, 61), "SignatureDoesNotMatch");
    }

    #[test]
    fn half_a_signature_is_incomplete_and_none_is_missing() {
        let mut parts = by_header();
        parts.headers.insert("authorization", "AWS4-HMAC-SHA256 Credential=a/b".parse().unwrap());
        assert_eq!(judge(&parts, BODY, SECRET, 0), "IncompleteSignature");
        parts.headers.remove("authorization");
        assert_eq!(judge(&parts, BODY, SECRET, 0), "MissingAuthenticationToken");
        let mut parts = by_header();
        parts.headers.remove("content-type");
        assert_eq!(judge(&parts, BODY, SECRET, 0), "IncompleteSignature");
    }

    #[test]
    fn queries_have_one_canonical_form() {
        assert_eq!(canonical_query("b=2&a=%7e&X-Amz-Signature=00&a=%2f+"), "a=%2F%2B&a=~&b=2");
    }

    #[test]
    fn dates_have_one_form() {
        assert!(parse_date("20261122T150000Z").is_some());
        for wrong in ["2026-11-22T15:00:00Z", "20261122T150000", "20261322T150000Z", "20261122T150000Z "] {
            assert_eq!(parse_date(wrong), None, "{wrong}");
        }
    }
}
