//! The XML of STS's answers, element for element as AWS writes it.

use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};

use super::sessions::Credentials;

const NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";

/// Bytes. AWS says how much of its limit a token uses, and not what the limit is: this one is ours.
const MAX_SESSION_TOKEN: usize = 4096;

/// The result of a good call.
pub(crate) enum Answer {
    WebIdentity { session: NewSession, provider: String, audience: String, subject: String },
    AssumeRole(NewSession),
    CallerIdentity { arn: String, user_id: String, account: String },
}

/// What both ways to assume a role answer.
pub(crate) struct NewSession {
    pub credentials: Credentials,
    pub arn: String,
    pub role_id: String,
    pub source_identity: Option<String>,
    pub packed_policy_size: Option<u32>,
}

/// The body of a good answer. It holds the secret, so it is a secret.
pub(crate) fn answer(action: &str, answer: &Answer, request_id: &str) -> SecretString {
    let mut xml = Xml::default();
    let response = format!("{action}Response");
    xml.0.push_str(&format!("<{response} xmlns=\"{NAMESPACE}\">\n"));
    xml.element(&format!("{action}Result"), |xml| match answer {
        Answer::WebIdentity { session, provider, audience, subject } => {
            xml.text("Audience", audience);
            xml.session(session);
            xml.text("Provider", provider);
            xml.text("SubjectFromWebIdentityToken", subject);
        }
        Answer::AssumeRole(session) => xml.session(session),
        Answer::CallerIdentity { arn, user_id, account } => {
            xml.text("Arn", arn);
            xml.text("UserId", user_id);
            xml.text("Account", account);
        }
    });
    xml.element("ResponseMetadata", |xml| xml.text("RequestId", request_id));
    xml.0.push_str(&format!("</{response}>\n"));
    SecretString::from(xml.0)
}

/// The body of a refusal. `Sender` says that the caller is to blame, as AWS does for every 4xx.
pub(crate) fn refusal(code: &str, message: &str, sender: bool, request_id: &str) -> String {
    let mut xml = Xml(format!("<ErrorResponse xmlns=\"{NAMESPACE}\">\n"));
    xml.element("Error", |xml| {
        xml.text("Type", if sender { "Sender" } else { "Receiver" });
        xml.text("Code", code);
        xml.text("Message", message);
    });
    xml.text("RequestId", request_id);
    xml.0.push_str("</ErrorResponse>\n");
    xml.0
}

/// Whole seconds and `Z`, as AWS writes times.
pub(crate) fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[derive(Default)]
struct Xml(String);

impl Xml {
    fn element(&mut self, name: &str, inside: impl FnOnce(&mut Self)) {
        self.0.push_str(&format!("<{name}>\n"));
        inside(self);
        self.0.push_str(&format!("</{name}>\n"));
    }

    fn text(&mut self, name: &str, text: &str) {
        self.0.push_str(&format!("<{name}>"));
        for c in text.chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                // XML 1.0 has no form at all for these, and a caller may send them.
                c if c.is_control() && !matches!(c, '\t' | '\n' | '\r') => self.0.push('\u{fffd}'),
                c => self.0.push(c),
            }
        }
        self.0.push_str(&format!("</{name}>\n"));
    }

    fn session(&mut self, session: &NewSession) {
        self.element("AssumedRoleUser", |xml| {
            xml.text("AssumedRoleId", &session.role_id);
            xml.text("Arn", &session.arn);
        });
        let credentials = &session.credentials;
        self.element("Credentials", |xml| {
            xml.text("AccessKeyId", &credentials.access_key_id);
            xml.text("SecretAccessKey", credentials.secret_access_key.expose_secret());
            xml.text("SessionToken", credentials.session_token.expose_secret());
            xml.text("Expiration", &time(credentials.expires));
        });
        // AWS says these two since 2026 and wants PackedPolicySize, which it keeps sending, to be forgotten.
        let size = credentials.session_token.expose_secret().len();
        self.text("SessionTokenSize", &size.to_string());
        self.text("SessionTokenUtilization", &(size * 100).div_ceil(MAX_SESSION_TOKEN).to_string());
        if let Some(identity) = &session.source_identity {
            self.text("SourceIdentity", identity);
        }
        if let Some(size) = session.packed_policy_size {
            self.text("PackedPolicySize", &size.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_caller_sent_cannot_break_out_of_its_element() {
        let xml = refusal("ValidationError", "</Message><Code>ok</Code>&\u{0}", true, "id");
        assert!(
            xml.contains("<Message>&lt;/Message&gt;&lt;Code&gt;ok&lt;/Code&gt;&amp;\u{fffd}</Message>"),
            "{xml}"
        );
    }
}
