//! `PAY_IGNORE_TYPES`: event types that are none of this service's business. Pure.

use std::sync::Arc;

use crate::payment::ORDER_PLACED;

/// No event type in the outbox is longer, in characters.
const PATTERN_MAX: usize = 255;

/// Patterns of event types whose messages are processed as `ignored`: stored, counted, nothing done.
#[derive(Debug, Clone, Default)]
pub struct IgnoredTypes(Arc<[String]>);

impl IgnoredTypes {
    /// Reads a comma-separated list; `*` stands for any characters, also none. An empty list ignores
    /// nothing.
    ///
    /// # Errors
    /// What is wrong with the list, for the operator.
    pub fn parse(list: &str) -> Result<Self, String> {
        if list.trim().is_empty() {
            return Ok(Self::default());
        }
        let patterns: Vec<String> = list.split(',').map(|p| p.trim().to_owned()).collect();
        for pattern in &patterns {
            if !(1..=PATTERN_MAX).contains(&pattern.chars().count()) {
                return Err(format!(
                    "{pattern:?} is not a pattern of 1 to {PATTERN_MAX} characters"
                ));
            }
            if matches(pattern, ORDER_PLACED) {
                return Err(format!(
                    "{pattern:?} would leave {ORDER_PLACED} unpaid, which this service is for"
                ));
            }
        }
        Ok(Self(patterns.into()))
    }

    /// Is a message of this type to be ignored? One without a type never is.
    #[must_use]
    pub fn contains(&self, event_type: Option<&str>) -> bool {
        event_type.is_some_and(|name| self.0.iter().any(|pattern| matches(pattern, name)))
    }
}

/// Does `pattern` match all of `text`? What stands between two stars is looked for from the left,
/// which finds a match if there is one, in a time bounded by the product of the lengths.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(mut text) = text.strip_prefix(head) else {
        return false;
    };
    let (middle, tail) = rest.rsplit_once('*').unwrap_or(("", rest));
    for part in middle.split('*') {
        match text.find(part) {
            Some(at) => text = &text[at + part.len()..],
            None => return false,
        }
    }
    text.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, text, expected) in [
            ("order.cancelled.v1", "order.cancelled.v1", true),
            ("order.cancelled.v1", "order.cancelled.v12", false),
            ("order.cancelled.*", "order.cancelled.v1", true),
            ("order.cancelled.*", "order.cancelled.", true),
            ("order.cancelled.*", "order.cancelled", false),
            ("*.v1", "order.cancelled.v1", true),
            ("*.v1", "order.cancelled.v2", false),
            ("*", "", true),
            ("**", "x", true),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("*ab*ab*", "abab", true),
            ("*ab*ab*", "aab", false),
            ("ö*ö", "öäö", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn a_list_has_patterns_between_commas() {
        let ignored = IgnoredTypes::parse("stock.*, order.cancelled.v1").unwrap();
        assert!(ignored.contains(Some("stock.low.v1")));
        assert!(ignored.contains(Some("order.cancelled.v1")));
        assert!(!ignored.contains(Some(ORDER_PLACED)));
        assert!(!ignored.contains(Some("")));
        assert!(!ignored.contains(None));
        let none = IgnoredTypes::parse(" ").unwrap();
        assert!(!none.contains(Some("stock.low.v1")) && !none.contains(Some("")));
    }

    #[test]
    fn a_list_that_cannot_be_meant_is_refused() {
        let too_long = "x".repeat(256);
        for list in ["a,,b", ",", too_long.as_str()] {
            assert!(IgnoredTypes::parse(list).is_err(), "{list}");
        }
        for list in ["*", "order.*", "stock.*,order.placed.v1", "*.v1"] {
            let problem = IgnoredTypes::parse(list).unwrap_err();
            assert!(problem.contains("would leave order.placed.v1 unpaid"));
        }
    }
}
