//! A URL that somebody wrote: every part of it counts, or it is none.

use http::Uri;

/// `text` as a URL. What the parser would drop without a word is a mistake: a port that is no number, a fragment.
pub(crate) fn parse(text: &str) -> Option<Uri> {
    let url: Uri = text.parse().ok()?;
    let (authority, host) = (url.authority()?.as_str(), url.host()?);
    let address = authority.rsplit_once('@').map_or(authority, |(_, address)| address);
    let named = address.len() > host.len();
    // A variable that the kubelet knew nothing of, such as that of a Service which is made later: it leaves `$(NAME)` as it is.
    (!text.contains("$(") && !text.contains('#') && (!named || url.port_u16().is_some())).then_some(url)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn what_the_parser_would_drop_is_a_mistake() {
        for good in
            ["http://x", "https://x:8443/y?z", "http://[::1]:80", "http://[::1]", "http://me:word@x:1"]
        {
            assert!(parse(good).is_some(), "{good}");
        }
        for bad in [
            "http://x:bad",
            "http://x:99999",
            "http://x:",
            "https://x#y",
            "http://me@x:bad",
            "/x",
            "",
            "http://$(X)",
            "http://x/$(X)",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }
}
