//! Whether a form was sent by a page of ours.
//!
//! The cookie is `SameSite=Strict`, but "site" knows no ports: a page of another service on this host
//! is the same site. `Origin` and `Sec-Fetch-Site` know better, and no script can set either.

use axum::http::HeaderMap;
use axum::http::header::{HOST, ORIGIN};

const SEC_FETCH_SITE: &str = "sec-fetch-site";

/// True when a browser says that the request comes from a page of this host and port. A request that
/// says nothing of the kind is not from a browser of this decade, and has the API.
pub(super) fn is_own(headers: &HeaderMap) -> bool {
    // A header that is not text is as one with a wrong text.
    let text = |name: &str| {
        headers
            .get(name)
            .map(|value| value.to_str().unwrap_or_default())
    };
    let site = text(SEC_FETCH_SITE).map(|site| site == "same-origin");
    let host = text(HOST.as_str());
    let origin = text(ORIGIN.as_str()).map(|origin| {
        // The scheme is the business of whoever puts TLS in front.
        let authority = origin.split_once("://").map(|(_, authority)| authority);
        authority
            .zip(host)
            .is_some_and(|(authority, host)| authority.eq_ignore_ascii_case(host))
    });
    match (site, origin) {
        (None, None) => false,
        (site, origin) => site.unwrap_or(true) && origin.unwrap_or(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(pairs: &[(&'static str, &str)]) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(*name, value.parse().unwrap());
        }
        is_own(&headers)
    }

    #[test]
    fn a_form_of_this_host_and_port_is_ours() {
        let host = ("host", "127.0.0.1:9764");
        assert!(own(&[host, ("origin", "http://127.0.0.1:9764")]));
        assert!(own(&[host, ("origin", "https://127.0.0.1:9764")]));
        assert!(own(&[host, ("sec-fetch-site", "same-origin")]));
        let both = [
            host,
            ("origin", "http://127.0.0.1:9764"),
            ("sec-fetch-site", "same-origin"),
        ];
        assert!(own(&both));
        assert!(own(&[
            ("host", "Relay.Example"),
            ("origin", "https://relay.example")
        ]));
    }

    #[test]
    fn a_form_of_anybody_else_is_not() {
        let host = ("host", "127.0.0.1:9764");
        assert!(!own(&[host]));
        assert!(!own(&[host, ("origin", "null")]));
        assert!(!own(&[host, ("origin", "http://127.0.0.1:9762")]));
        assert!(!own(&[
            host,
            ("origin", "http://127.0.0.1:9764.evil.example")
        ]));
        assert!(!own(&[("origin", "http://127.0.0.1:9764")]));
        for site in ["same-site", "cross-site", "none"] {
            assert!(!own(&[host, ("sec-fetch-site", site)]), "{site}");
        }
        let mixed = [
            host,
            ("origin", "http://127.0.0.1:9764"),
            ("sec-fetch-site", "same-site"),
        ];
        assert!(!own(&mixed));
    }
}
