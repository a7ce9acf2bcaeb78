//! Who may look, and who may act: the tokens of `OPS_TOKENS`.

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use secrecy::{ExposeSecret as _, SecretString};
use subtle::ConstantTimeEq as _;

use crate::boot::ConfigError;

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
    token: SecretString,
}

/// Everyone with a token.
#[derive(Clone, Debug, Default)]
pub struct Tokens(Vec<Person>);

impl Tokens {
    /// Parses `name:role:token`, comma-separated.
    ///
    /// # Errors
    /// An entry that is not of that form; its token is not in the text.
    pub fn parse(list: &SecretString) -> Result<Self, ConfigError> {
        list.expose_secret()
            .split(',')
            .map(str::trim)
            .filter(|entry| !entry.is_empty())
            .map(person)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Nobody has one: `/ops` is off.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The person a token belongs to. Takes the same time for every wrong token of a length.
    #[must_use]
    pub fn authenticate(&self, token: &str) -> Option<&Person> {
        let mut found = None;
        for person in &self.0 {
            let own = person.token.expose_secret().as_bytes();
            if bool::from(own.ct_eq(token.as_bytes())) {
                found = Some(person);
            }
        }
        found
    }

    /// The person a request comes from, by its `Authorization: Bearer …`.
    #[must_use]
    pub fn bearer(&self, headers: &HeaderMap) -> Option<&Person> {
        let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
        let (scheme, token) = value.split_once(' ')?;
        scheme
            .eq_ignore_ascii_case("bearer")
            .then(|| self.authenticate(token.trim()))?
    }
}

fn person(entry: &str) -> Result<Person, ConfigError> {
    let invalid = |problem: String| {
        ConfigError::new(
            "OPS_TOKENS",
            problem,
            "write name:role:token, role viewer or operator",
        )
    };
    let mut parts = entry.splitn(3, ':');
    let (Some(name), Some(role), Some(token)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(invalid("has an entry without two colons".to_owned()));
    };
    if name.is_empty() || name.chars().count() > 64 {
        return Err(invalid(
            "has a name that is empty or longer than 64 characters".to_owned(),
        ));
    }
    let role = match role {
        "viewer" => Role::Viewer,
        "operator" => Role::Operator,
        other => return Err(invalid(format!("gives {name} the unknown role {other:?}"))),
    };
    if token.is_empty() {
        let problem = format!("gives {name} no token");
        return Err(ConfigError::new(
            "OPS_TOKENS",
            problem,
            "make one with: openssl rand -hex 16",
        ));
    }
    Ok(Person {
        name: name.to_owned(),
        role,
        token: SecretString::from(token),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "ann:operator:0123456789abcdef, bob:viewer:fedcba9876543210:with:colons,";

    fn tokens() -> Tokens {
        Tokens::parse(&SecretString::from(LIST)).unwrap()
    }

    #[test]
    fn a_token_belongs_to_one_person() {
        let tokens = tokens();
        let ann = tokens.authenticate("0123456789abcdef").unwrap();
        assert_eq!((ann.name.as_str(), ann.role), ("ann", Role::Operator));
        let bob = tokens.authenticate("fedcba9876543210:with:colons").unwrap();
        assert_eq!((bob.name.as_str(), bob.role), ("bob", Role::Viewer));
        for wrong in [
            "",
            "0123456789abcde",
            "0123456789abcdeF",
            "fedcba9876543210",
        ] {
            assert!(tokens.authenticate(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_request_is_known_by_its_bearer_token_alone() {
        let tokens = tokens();
        let mut headers = HeaderMap::new();
        assert!(tokens.bearer(&headers).is_none());
        headers.insert(AUTHORIZATION, "bearer 0123456789abcdef".parse().unwrap());
        assert_eq!(tokens.bearer(&headers).unwrap().name, "ann");
        headers.insert(AUTHORIZATION, "Basic 0123456789abcdef".parse().unwrap());
        assert!(tokens.bearer(&headers).is_none());
    }

    #[test]
    fn a_wrong_entry_is_refused_without_showing_its_token() {
        for wrong in [
            "ann",
            "ann:operator",
            "ann:viewer:",
            ":viewer:hunter2",
            "ann:root:hunter2",
        ] {
            let err = Tokens::parse(&SecretString::from(wrong)).unwrap_err();
            assert_eq!(err.field, "OPS_TOKENS");
            assert!(!err.to_string().contains("hunter2"), "{err}");
        }
    }
}
