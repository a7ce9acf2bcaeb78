//! `DATABASE_URL`.

use std::fmt::Write as _;
use std::net::Ipv6Addr;

use secrecy::ExposeSecret as _;
use svc_kit::database::{DatabaseUrl, Tls};

const SECRET: &str = "hunter2";
/// Where the secret is put in the text.
const MARK: char = '|';

/// A URL's parts survive another spelling of the same URL, and whatever stands around a password, no
/// part of it is shown.
pub fn database_url(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match DatabaseUrl::parse(text) {
        Ok(url) => is_read_again(&url),
        Err(err) => assert!(!err.problem.is_empty() && !err.fix.is_empty()),
    }
    let (before, after) = text.split_once(MARK).unwrap_or((text, ""));
    shows_no_secret(before, after);
}

fn is_read_again(url: &DatabaseUrl) {
    let again = DatabaseUrl::parse(&spelled(url)).expect("the parts of a URL make a URL");
    let password = |url: &DatabaseUrl| url.password().map(|it| it.expose_secret().to_owned());
    assert_eq!(again.host(), url.host());
    assert_eq!(again.port(), url.port());
    assert_eq!(again.user(), url.user());
    assert_eq!(password(&again), password(url));
    assert_eq!(again.database(), url.database());
    assert_eq!(again.tls(), url.tls());
    assert_eq!(again.to_string(), url.to_string());
}

/// The URL with each byte that may be encoded encoded.
fn spelled(url: &DatabaseUrl) -> String {
    let host = match url.host().parse::<Ipv6Addr>() {
        Ok(address) => format!("[{address}]"),
        Err(_) => encoded(url.host()),
    };
    let password = url
        .password()
        .map(|password| format!(":{}", encoded(password.expose_secret())));
    let tls = match url.tls() {
        Tls::Disabled => "ssl-mode=disabled".to_owned(),
        Tls::Preferred => String::new(),
        Tls::Required => "ssl-mode=REQUIRED".to_owned(),
        Tls::VerifyIdentity { ca: None } => "ssl-mode=VERIFY_IDENTITY".to_owned(),
        Tls::VerifyIdentity { ca: Some(ca) } => {
            let ca = encoded(&ca.to_string_lossy());
            format!("ssl-ca={ca}&ssl-mode=VERIFY_IDENTITY")
        }
    };
    let (user, password) = (encoded(url.user()), password.unwrap_or_default());
    let (port, database) = (url.port(), encoded(url.database()));
    format!("mysql://{user}{password}@{host}:{port}/{database}?{tls}")
}

fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut all, byte| {
        // Writing to a String can't fail.
        _ = write!(all, "%{byte:02X}");
        all
    })
}

/// What a person makes of a password with special characters in it, not encoded.
fn shows_no_secret(before: &str, after: &str) {
    let text = format!("{before}{SECRET}{after}@db:3306/orders");
    match DatabaseUrl::parse(&text) {
        Ok(url) => {
            assert_eq!(url.to_string(), "mysql://db:3306/orders", "{text}");
            assert!(!format!("{url:?}").contains(SECRET), "{text}");
        }
        Err(err) => {
            assert_eq!(err.field, "DATABASE_URL");
            assert!(!format!("{err} {err:?}").contains(SECRET), "{text}: {err}");
        }
    }
}
