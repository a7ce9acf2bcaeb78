//! Times as operators write and read them: RFC 3339, UTC.

use std::time::Duration;

use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, PrimitiveDateTime, UtcOffset};

/// A clap `value_parser`: `2026-01-31T12:00:00Z`. Another offset is turned into UTC.
pub(super) fn time(text: &str) -> Result<PrimitiveDateTime, String> {
    let parsed = OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|err| format!("{err}; write it as 2026-01-31T12:00:00Z"))?;
    let utc = parsed.to_offset(UtcOffset::UTC);
    Ok(PrimitiveDateTime::new(utc.date(), utc.time()))
}

/// A time of the database, which holds UTC.
pub(super) fn rfc3339(time: PrimitiveDateTime) -> String {
    let formatted = time.assume_utc().format(&Rfc3339);
    formatted.unwrap_or_else(|_| time.to_string())
}

/// From `earlier` to `later`; nothing when it is the other way round.
pub(super) fn between(earlier: PrimitiveDateTime, later: PrimitiveDateTime) -> Duration {
    Duration::try_from(later - earlier).unwrap_or_default()
}

/// `30d 4h`, without what is under a second.
pub(super) fn in_words(duration: Duration) -> String {
    humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn a_time_has_an_offset_and_is_kept_in_utc() {
        let noon = datetime!(2026-01-31 12:00);
        assert_eq!(time("2026-01-31T12:00:00Z"), Ok(noon));
        assert_eq!(time("2026-01-31T20:00:00+08:00"), Ok(noon));
        for wrong in ["", "yesterday", "2026-01-31", "2026-01-31T12:00:00"] {
            let says = time(wrong).unwrap_err();
            assert!(says.contains("2026-01-31T12:00:00Z"), "{wrong}: {says}");
        }
        assert_eq!(rfc3339(noon), "2026-01-31T12:00:00Z");
    }

    #[test]
    fn a_time_after_the_other_is_no_time_ago() {
        let (early, late) = (datetime!(2026-01-31 12:00), datetime!(2026-01-31 12:01));
        assert_eq!(between(early, late), Duration::from_mins(1));
        assert_eq!(between(late, early), Duration::ZERO);
        assert_eq!(in_words(between(early, late)), "1m");
    }
}
