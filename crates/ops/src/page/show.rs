//! Content of the database as a person can read it. Escaping for HTML is the templates'; here it is
//! made visible: no character may hide on the page, or move others.

use std::time::Duration;

/// One line of text with its control characters visible.
pub(super) fn line(text: &str) -> String {
    text.chars().map(visible).collect()
}

/// Text with its line breaks and tabs kept and all other control characters visible.
pub(super) fn lines(text: &str) -> String {
    text.chars()
        .map(|char| match char {
            '\n' | '\t' => char.to_string(),
            other => visible(other),
        })
        .collect()
}

/// A line of at most this many characters.
pub(super) fn short(text: &str, max: usize) -> String {
    let mut cut: String = text.chars().take(max).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    line(&cut)
}

/// A character as it is, or by its number when it would not show or would reorder its neighbours.
fn visible(char: char) -> String {
    match char {
        '\u{00}'..='\u{1f}'
        | '\u{7f}'..='\u{9f}'
        | '\u{ad}'
        | '\u{61c}'
        | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e007f}' => format!("[U+{:04X}]", u32::from(char)),
        other => other.to_string(),
    }
}

/// A time of the console, to the second: `2026-01-02 03:04:05`, UTC.
pub(super) fn time(at: Option<&str>) -> String {
    let at = at.unwrap_or("unknown");
    let seconds = at.split('.').next().unwrap_or_default();
    line(&seconds.replacen('T', " ", 1))
}

/// An age in its two largest units, as a person says it.
pub(super) fn age(seconds: f64) -> String {
    let age = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX);
    let seconds = age.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, _, 0) => format!("{hours} h"),
        (0, _, _) => format!("{hours} h {minutes} min"),
        (_, 0, _) => format!("{days} d"),
        (_, _, _) => format!("{days} d {hours} h"),
    }
}

/// A number with its thousands apart: `12,345`.
pub(super) fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut apart = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            apart.push(',');
        }
        apart.push(digit);
    }
    apart
}

/// `1 row`, `2 rows`.
pub(super) fn rows(count: u64) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{} row{s}", number(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_hide_or_reorder_is_visible() {
        assert_eq!(line("a\r\nb\0"), "a[U+000D][U+000A]b[U+0000]");
        assert_eq!(line("abc\u{202e}def\u{200b}"), "abc[U+202E]def[U+200B]");
        assert_eq!(line("\u{7f}\u{85}\u{feff}"), "[U+007F][U+0085][U+FEFF]");
        assert_eq!(lines("a\n\tb\r"), "a\n\tb[U+000D]");
        assert_eq!(line("Grüße, 日本 🎉"), "Grüße, 日本 🎉");
        assert_eq!(short("grün\nblau", 5), "grün[U+000A]…");
        assert_eq!(short("grün", 4), "grün");
    }

    #[test]
    fn times_ages_and_numbers_are_as_people_say_them() {
        assert_eq!(
            time(Some("2026-01-02T03:04:05.678901Z")),
            "2026-01-02 03:04:05"
        );
        assert_eq!(time(None), "unknown");
        assert_eq!(age(-1.0), "0 s");
        assert_eq!(age(59.9), "59 s");
        assert_eq!(age(61.0), "1 min");
        assert_eq!(age(3_600.0), "1 h");
        assert_eq!(age(3_661.0), "1 h 1 min");
        assert_eq!(age(86_400.0), "1 d");
        assert_eq!(age(90_061.0), "1 d 1 h");
        assert_eq!(age(f64::INFINITY), age(Duration::MAX.as_secs_f64()));
        assert_eq!(number(1), "1");
        assert_eq!(number(1_234_567), "1,234,567");
        assert_eq!(
            (rows(1), rows(2_000)),
            ("1 row".to_owned(), "2,000 rows".to_owned())
        );
    }
}
