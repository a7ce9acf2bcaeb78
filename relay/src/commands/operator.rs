//! Who acts and why, as `operator_actions` holds it.

use ::ops::audit::{ACTOR_MAX, REASON_MAX};
use svc_kit::boot::ConfigError;

/// Who acts: as named, else the user and the machine.
pub(super) fn actor(by: Option<&str>) -> Result<String, ConfigError> {
    match by {
        Some(by) => text("--by", by, ACTOR_MAX),
        None => Ok(::ops::cli::whoever().chars().take(ACTOR_MAX).collect()),
    }
}

/// Why, in the person's words.
pub(super) fn reason(words: &str) -> Result<String, ConfigError> {
    text("--reason", words, REASON_MAX)
}

fn text(field: &str, text: &str, max: usize) -> Result<String, ConfigError> {
    let text = text.trim();
    if (1..=max).contains(&text.chars().count()) {
        return Ok(text.to_owned());
    }
    let problem = format!("it is not 1 to {max} characters");
    Err(ConfigError::new(field, problem, "say it in a few words"))
}
