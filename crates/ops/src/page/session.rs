//! Who is logged in. Sessions live in memory: a restart ends them all, and nothing of them is stored
//! where it could be stolen from.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use svc_kit::operators::{Person, Role};

use super::notice::Notice;

/// How long a login lasts, whatever is done with it.
pub(super) const LIFE: Duration = Duration::from_secs(8 * 3600);
/// Logins at once; one more ends the one that would have ended first.
const SESSIONS_MAX: usize = 256;

/// A person who is logged in.
#[derive(Clone, Debug)]
pub(super) struct Visitor {
    /// The name in `operator_actions`.
    pub(super) name: String,
    /// What the person may do.
    pub(super) role: Role,
    /// Goes into every form, and comes back with it.
    pub(super) csrf: String,
    /// The key of the session.
    id: [u8; 32],
}

impl Visitor {
    /// The word in `OPS_TOKENS`.
    pub(super) fn role_name(&self) -> &'static str {
        match self.role {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
        }
    }

    /// Whether buttons are shown and posts are taken.
    pub(super) fn may_act(&self) -> bool {
        self.role >= Role::Operator
    }
}

struct Session {
    visitor: Visitor,
    ends: Instant,
    notice: Option<Notice>,
}

/// Everyone who is logged in.
#[derive(Default)]
pub(super) struct Sessions(Mutex<HashMap<[u8; 32], Session>>);

impl Sessions {
    /// Logs a person in; gives the value of the cookie.
    pub(super) fn open(&self, person: &Person, now: Instant) -> String {
        let cookie = secret();
        let id = digest(&cookie);
        let visitor = Visitor {
            name: person.name.clone(),
            role: person.role,
            csrf: secret(),
            id,
        };
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, session| session.ends > now);
        if sessions.len() >= SESSIONS_MAX {
            let first = sessions.iter().min_by_key(|(_, session)| session.ends);
            if let Some(id) = first.map(|(&id, _)| id) {
                sessions.remove(&id);
            }
        }
        let session = Session {
            visitor,
            ends: now + LIFE,
            notice: None,
        };
        sessions.insert(id, session);
        cookie
    }

    /// The person a cookie belongs to. It is looked up by its digest, so that the time this takes
    /// says nothing of the cookies that exist.
    pub(super) fn find(&self, cookie: &str, now: Instant) -> Option<Visitor> {
        let sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let session = sessions.get(&digest(cookie))?;
        (session.ends > now).then(|| session.visitor.clone())
    }

    /// Logs a person out.
    pub(super) fn close(&self, visitor: &Visitor) {
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.remove(&visitor.id);
    }

    /// Keeps a notice for the person's next page.
    pub(super) fn notify(&self, visitor: &Visitor, notice: Notice) {
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = sessions.get_mut(&visitor.id) {
            session.notice = Some(notice);
        }
    }

    /// The notice for this page, once.
    pub(super) fn notice(&self, visitor: &Visitor) -> Option<Notice> {
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.get_mut(&visitor.id)?.notice.take()
    }
}

/// 256 random bits as text.
pub(super) fn secret() -> String {
    let bytes: [u8; 32] = rand::random();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn digest(cookie: &str) -> [u8; 32] {
    Sha256::digest(cookie).into()
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;
    use svc_kit::operators::Tokens;

    use super::*;

    fn ann() -> Person {
        let list = SecretString::from("ann:operator:0123456789abcdef");
        let tokens = Tokens::parse(&list).unwrap();
        let here = std::net::Ipv4Addr::LOCALHOST.into();
        let ann = tokens.authenticate("0123456789abcdef", here);
        ann.unwrap().clone()
    }

    #[test]
    fn a_session_ends_with_its_time_or_by_logout() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let cookie = sessions.open(&ann(), now);
        let visitor = sessions.find(&cookie, now).unwrap();
        assert_eq!(visitor.name, "ann");
        let last = LIFE - Duration::from_secs(1);
        assert!(sessions.find(&cookie, now + last).is_some());
        assert!(sessions.find(&cookie, now + LIFE).is_none());
        assert!(sessions.find("another", now).is_none());
        sessions.close(&visitor);
        assert!(sessions.find(&cookie, now).is_none());
    }

    #[test]
    fn one_login_too_many_ends_the_oldest() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let second = |n: usize| now + Duration::from_secs(u64::try_from(n).unwrap());
        let cookies: Vec<String> = (0..=SESSIONS_MAX)
            .map(|n| sessions.open(&ann(), second(n)))
            .collect();
        let now = second(SESSIONS_MAX);
        assert!(sessions.find(&cookies[0], now).is_none());
        assert!(sessions.find(&cookies[1], now).is_some());
        assert!(sessions.find(&cookies[SESSIONS_MAX], now).is_some());
    }

    #[test]
    fn no_two_logins_share_a_secret() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let (one, other) = (sessions.open(&ann(), now), sessions.open(&ann(), now));
        assert_ne!(one, other);
        let csrf = |cookie: &str| sessions.find(cookie, now).unwrap().csrf;
        assert_ne!(csrf(&one), csrf(&other));
        assert_ne!(csrf(&one), one);
    }

    #[test]
    fn a_notice_is_shown_once() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let visitor = sessions.find(&sessions.open(&ann(), now), now).unwrap();
        sessions.notify(&visitor, Notice::good("done"));
        assert_eq!(sessions.notice(&visitor).unwrap().text, "done");
        assert!(sessions.notice(&visitor).is_none());
    }
}
