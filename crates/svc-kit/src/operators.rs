//! Who may look, and who may act: the tokens of `OPS_TOKENS`. Every door that takes one looks here.

mod throttle;

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::AUTHORIZATION;
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use self::throttle::Throttle;
use crate::boot::ConfigError;
use crate::http::{Problem, peer};

/// Fewer characters can be guessed, whatever slows the guesses.
const TOKEN_MIN: usize = 16;
/// Fewer different ones are a pattern. A token of 32 random hexadecimal digits has so few only once in
/// 30 million times.
const DIFFERENT_MIN: usize = 8;
/// A name of so many hexadecimal digits is a token in the wrong place.
const HEX_TOKEN: usize = 32;
const NEW_TOKEN: &str = "make one with: openssl rand -hex 16";

/// What a person may do. An operator may do all a viewer may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Look.
    Viewer,
    /// Look and act.
    Operator,
}

/// A person with a token.
#[derive(Clone, Debug)]
pub struct Person {
    /// The name in `operator_actions`.
    pub name: String,
    /// What the person may do.
    pub role: Role,
}

/// Everyone with a token. Clones share the count of the wrong ones.
#[derive(Clone, Default)]
pub struct Tokens(Arc<Inner>);

#[derive(Default)]
struct Inner {
    holders: Vec<Holder>,
    throttle: Throttle,
}

struct Holder {
    person: Person,
    // A digest: all are of one length, and none is worth as much as a token.
    token: [u8; 32],
}

/// Why a token lets nobody in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is nobody's.
    Wrong,
    /// It is nobody's, and too many others were nobody's: the next is looked at after this time.
    TooMany(Duration),
}

impl Tokens {
    /// Parses `name:role:token`, comma-separated.
    ///
    /// # Errors
    /// An entry that can't work, by its position: any part of it may be a token in the wrong place.
    pub fn parse(list: &SecretString) -> Result<Self, ConfigError> {
        let mut holders: Vec<Holder> = Vec::new();
        let entries = list.expose_secret().split(',').map(str::trim);
        for entry in entries.filter(|entry| !entry.is_empty()) {
            let at = holders.len() + 1;
            let new = holder(entry, at)?;
            for (other, known) in (1..).zip(&holders) {
                let shared = |what: &str, fix: &str| {
                    let problem = format!("gives entries {other} and {at} the same {what}");
                    Err(ConfigError::new("OPS_TOKENS", problem, fix))
                };
                if known.person.name == new.person.name {
                    return shared("name", "give each person one entry");
                }
                if known.token == new.token {
                    return shared("token", NEW_TOKEN);
                }
            }
            holders.push(new);
        }
        Ok(Self(Arc::new(Inner {
            holders,
            throttle: Throttle::default(),
        })))
    }

    /// Nobody has one: `/ops` is off.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.holders.is_empty()
    }

    /// The person a token belongs to. A right one is known at once, whatever was guessed before it;
    /// the time this takes depends on the length of what is shown alone.
    ///
    /// # Errors
    /// It is nobody's.
    pub fn authenticate(&self, token: &str, from: IpAddr) -> Result<&Person, Refused> {
        let token: [u8; 32] = Sha256::digest(token).into();
        let mut found = None;
        for holder in &self.0.holders {
            if bool::from(holder.token.ct_eq(&token)) {
                found = Some(&holder.person);
            }
        }
        found.ok_or_else(|| match self.0.throttle.wrong(from, Instant::now()) {
            Ok(()) => {
                tracing::warn!(%from, "a wrong token was shown");
                Refused::Wrong
            }
            // Not one line for each: the log would be as long as the attacker wants it.
            Err(wait) => Refused::TooMany(wait),
        })
    }

    /// The person a request comes from, by its `Authorization: Bearer …`, if that may do this.
    ///
    /// # Errors
    /// The answer: no token or a wrong one (401), too many wrong ones (429), too low a role (403).
    pub fn admit(&self, request: &Request, least: Role) -> Result<&Person, Problem> {
        let no_token = || {
            let title = "A token is needed";
            Problem::new(StatusCode::UNAUTHORIZED, "no_token", title)
        };
        let shown = request.headers().get(AUTHORIZATION).ok_or_else(no_token)?;
        let token = shown.to_str().ok().and_then(bearer).unwrap_or_default();
        let person = self.authenticate(token, peer(request.extensions()));
        let person = person.map_err(|refused| match refused {
            Refused::Wrong => no_token(),
            Refused::TooMany(wait) => {
                let title = "Too many wrong tokens";
                let status = StatusCode::TOO_MANY_REQUESTS;
                Problem::new(status, "too_many_guesses", title).retry_after(wait)
            }
        })?;
        if person.role >= least {
            return Ok(person);
        }
        let title = "The token is not an operator's";
        Err(Problem::new(
            StatusCode::FORBIDDEN,
            "not_an_operator",
            title,
        ))
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let people = self.0.holders.iter().map(|holder| &holder.person);
        f.debug_list().entries(people).finish()
    }
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn holder(entry: &str, at: usize) -> Result<Holder, ConfigError> {
    let wrong = |problem: &str, fix: &str| {
        ConfigError::new("OPS_TOKENS", format!("entry {at} {problem}"), fix)
    };
    let form = "write name:role:token, role viewer or operator, a comma between two entries";
    let mut parts = entry.splitn(3, ':');
    let (Some(name), Some(role), Some(token)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(wrong("is not of three parts", form));
    };
    if name.is_empty() || name.chars().count() > 64 {
        let problem = "has a name that is empty or longer than 64 characters";
        return Err(wrong(problem, form));
    }
    if name.len() >= HEX_TOKEN && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(wrong("has a name that looks like a token", form));
    }
    let role = match role {
        "viewer" => Role::Viewer,
        "operator" => Role::Operator,
        _ => return Err(wrong("has an unknown role", form)),
    };
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        let problem = "has a token with a space, a line break or another character that no header \
                       carries";
        return Err(wrong(problem, form));
    }
    if token.len() < TOKEN_MIN {
        let problem = format!("has a token of fewer than {TOKEN_MIN} characters");
        return Err(wrong(&problem, NEW_TOKEN));
    }
    if token.bytes().collect::<HashSet<_>>().len() < DIFFERENT_MIN {
        let problem = format!("has a token of fewer than {DIFFERENT_MIN} different characters");
        return Err(wrong(&problem, NEW_TOKEN));
    }
    Ok(Holder {
        person: Person {
            name: name.to_owned(),
            role,
        },
        token: Sha256::digest(token).into(),
    })
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    const LIST: &str = "ann:operator:0123456789abcdef, bob:viewer:fedcba9876543210:with:colons,";
    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn tokens() -> Tokens {
        Tokens::parse(&SecretString::from(LIST)).unwrap()
    }

    #[test]
    fn a_token_belongs_to_one_person() {
        let tokens = tokens();
        let ann = tokens.authenticate("0123456789abcdef", HERE).unwrap();
        assert_eq!((ann.name.as_str(), ann.role), ("ann", Role::Operator));
        let bob = tokens.authenticate("fedcba9876543210:with:colons", HERE);
        let bob = bob.unwrap();
        assert_eq!((bob.name.as_str(), bob.role), ("bob", Role::Viewer));
        for wrong in [
            "",
            "0123456789abcde",
            "0123456789abcdeF",
            "fedcba9876543210",
        ] {
            let refused = tokens.authenticate(wrong, HERE).unwrap_err();
            assert_eq!(refused, Refused::Wrong, "{wrong}");
        }
    }

    #[test]
    fn a_request_is_known_by_its_bearer_token_alone() {
        let tokens = tokens();
        let admitted = |authorization: &str, least| {
            let request = Request::builder().header(AUTHORIZATION, authorization);
            let request = request.body(Body::empty()).unwrap();
            let person = tokens.admit(&request, least);
            person
                .map(|person| person.name.clone())
                .map_err(|no| no.status.as_u16())
        };
        let bare = Request::new(Body::empty());
        let problem = tokens.admit(&bare, Role::Viewer).unwrap_err();
        assert_eq!(problem.status, StatusCode::UNAUTHORIZED);
        let ann = "bearer 0123456789abcdef";
        assert_eq!(admitted(ann, Role::Operator), Ok("ann".to_owned()));
        let bob = "Bearer fedcba9876543210:with:colons";
        assert_eq!(admitted(bob, Role::Viewer), Ok("bob".to_owned()));
        assert_eq!(admitted(bob, Role::Operator), Err(403));
        assert_eq!(admitted("Basic 0123456789abcdef", Role::Viewer), Err(401));
    }

    #[test]
    fn a_right_token_works_whatever_was_guessed_before_it_and_forgives_nothing() {
        let tokens = tokens();
        for _ in 0..10 {
            let refused = tokens.authenticate("a guess", HERE).unwrap_err();
            assert_eq!(refused, Refused::Wrong);
        }
        for _ in 0..100 {
            assert!(tokens.authenticate("0123456789abcdef", HERE).is_ok());
            let refused = tokens.clone().authenticate("a guess", HERE).unwrap_err();
            assert!(matches!(refused, Refused::TooMany(_)), "{refused:?}");
        }
    }

    #[track_caller]
    fn refused(list: &str, problem: &str) {
        let err = Tokens::parse(&SecretString::from(list)).unwrap_err();
        assert_eq!(err.field, "OPS_TOKENS");
        assert!(err.problem.contains(problem), "{err}");
        assert!(!err.to_string().contains("hunter2"), "{err}");
    }

    #[test]
    fn a_wrong_entry_is_refused_by_its_position_without_showing_its_token() {
        refused("ann", "entry 1 is not of three parts");
        refused("ann:operator", "entry 1 is not of three parts");
        refused(
            "ann:viewer:",
            "entry 1 has a token of fewer than 16 characters",
        );
        refused("ann:viewer:hunter2", "fewer than 16");
        refused(
            ":viewer:hunter2hunter2hu",
            "entry 1 has a name that is empty",
        );
        refused("ann:root:hunter2hunter2hu", "entry 1 has an unknown role");
        refused(
            "ann:hunter2hunter2hu:operator",
            "entry 1 has an unknown role",
        );
        refused("hunter2hunter2hu:operator:ann", "fewer than 16");
        refused(
            "ann:viewer:aaaaaaaaaaaaaaaa",
            "entry 1 has a token of fewer than 8 different characters",
        );
        refused("ann:viewer:abcdefgabcdefgabcdefg", "fewer than 8 different");
        refused(
            "0123456789abcdef0123456789ABCDEF:operator:ann-is-an-operator",
            "entry 1 has a name that looks like a token",
        );
        refused("operator:ann:hunter2hunter2hu", "unknown role");
        refused("hunter2hunter2hu", "three parts");
        let ann = "ann:operator:hunter2-hunter2-h";
        refused(
            &format!("{ann},bob:viewer"),
            "entry 2 is not of three parts",
        );
        refused(
            &format!("{ann}\nbob:viewer:hunter2-hunter2-x"),
            "entry 1 has a token with a space, a line break",
        );
        refused(
            &format!("{ann},bob:viewer:hunter2-hunter2-x,ann:viewer:hunter2-hunter2-y"),
            "gives entries 1 and 3 the same name",
        );
        refused(
            &format!("{ann},bob:viewer:hunter2-hunter2-h"),
            "gives entries 1 and 2 the same token",
        );
    }

    #[test]
    fn neither_a_token_nor_its_digest_is_shown() {
        let shown = format!("{:?}", tokens());
        assert!(shown.contains("ann") && shown.contains("bob"), "{shown}");
        assert!(!shown.contains("0123456789abcdef"), "{shown}");
        assert!(!shown.contains("token"), "{shown}");
    }
}
