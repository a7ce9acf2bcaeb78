//! Forms and queries, read strictly: what is not UTF-8 is refused, not fixed, so that nothing is
//! stored that nobody has written.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use subtle::ConstantTimeEq as _;

/// Fields in a form or a query at most; a page shows no more rows than that.
const FIELDS_MAX: usize = 1_000;

/// What a query's values are written with.
const UNSAFE: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// Why a form could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadForm {
    /// Not what a browser sends.
    #[error("the form is not URL-encoded UTF-8")]
    Encoding,
    /// More than a page of ours has.
    #[error("the form has more than {FIELDS_MAX} fields")]
    TooMany,
}

/// The fields of a form or a query, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fields(Vec<(String, String)>);

impl Fields {
    /// Reads `name=value&…`.
    pub(super) fn parse(encoded: &[u8]) -> Result<Self, BadForm> {
        let text = std::str::from_utf8(encoded).map_err(|_| BadForm::Encoding)?;
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        let mut fields = Vec::new();
        for pair in pairs {
            if fields.len() == FIELDS_MAX {
                return Err(BadForm::TooMany);
            }
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            fields.push((decode(name)?, decode(value)?));
        }
        Ok(Self(fields))
    }

    /// The first field of this name, without white space around; empty is none.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let value = self.raw(name)?.trim();
        (!value.is_empty()).then_some(value)
    }

    /// The first field of this name, as it was sent.
    pub(super) fn raw(&self, name: &str) -> Option<&str> {
        let field = self.0.iter().find(|(own, _)| own == name);
        field.map(|(_, value)| value.as_str())
    }

    /// Every field of this name.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(own, _)| own == name)
            .map(|(_, value)| value.as_str())
    }

    /// Whether a field has this secret; takes the same time for every wrong one of its length.
    pub(super) fn has_secret(&self, name: &str, secret: &str) -> bool {
        let sent = self.raw(name).unwrap_or_default();
        bool::from(sent.as_bytes().ct_eq(secret.as_bytes()))
    }
}

/// Writes `name=value&…` of the pairs that have a value.
pub(super) fn query<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let pairs = pairs.into_iter().filter(|(_, value)| !value.is_empty());
    let pairs: Vec<String> = pairs
        .map(|(name, value)| format!("{name}={}", encode(value)))
        .collect();
    pairs.join("&")
}

/// A value as it may stand in a path or a query.
pub(super) fn encode(value: &str) -> String {
    utf8_percent_encode(value, UNSAFE).to_string()
}

fn decode(text: &str) -> Result<String, BadForm> {
    let text = text.replace('+', " ");
    let decoded = percent_decode_str(&text).decode_utf8();
    decoded
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| BadForm::Encoding)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_read_as_a_browser_wrote_it() {
        let fields = Fields::parse(b"reason=+sold+out%21+&key=1&key=2&empty=&alone").unwrap();
        assert_eq!(fields.get("reason"), Some("sold out!"));
        assert_eq!(fields.raw("reason"), Some(" sold out! "));
        assert_eq!(fields.all("key").collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(fields.get("empty"), None);
        assert_eq!(fields.get("alone"), None);
        assert_eq!(fields.get("none"), None);
    }

    #[test]
    fn what_is_not_utf8_is_refused() {
        for wrong in [&b"a=%ff"[..], b"a=\xff", b"%c3=1", b"a=%ed%a0%80"] {
            assert_eq!(Fields::parse(wrong), Err(BadForm::Encoding), "{wrong:?}");
        }
    }

    #[test]
    fn a_form_has_a_bound() {
        let many = "k=v&".repeat(FIELDS_MAX);
        assert!(Fields::parse(many.as_bytes()).is_ok());
        let more = "k=v&".repeat(FIELDS_MAX + 1);
        assert_eq!(Fields::parse(more.as_bytes()), Err(BadForm::TooMany));
    }

    #[test]
    fn what_is_written_is_read_again() {
        let text = "a&b=c d+é/?#%\"<\u{202e}";
        let written = query([("text", text), ("none", "")]);
        let read = Fields::parse(written.as_bytes()).unwrap();
        assert_eq!(read.raw("text"), Some(text));
        assert_eq!(read.raw("none"), None);
    }
}
