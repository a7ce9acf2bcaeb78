//! A payload for people: JSON indented, anything else as a dump of its bytes.

use serde::Serialize;

/// Bytes of a payload, or of headers, that are shown.
pub const SHOWN_MAX: usize = 64 * 1024;

/// How a payload is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "console", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// Indented; nothing else is changed.
    Json,
    /// Offset, hexadecimal digits and ASCII, 16 bytes a line.
    Hex,
}

/// A payload as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "console", derive(utoipa::ToSchema))]
pub struct Payload {
    /// Bytes of the whole payload.
    pub bytes: u64,
    /// Only its first 65,536 bytes are shown.
    pub truncated: bool,
    /// How it is shown.
    pub form: Form,
    /// The text.
    pub text: String,
    /// The payload itself, where it is UTF-8 and not truncated: what an edit begins with.
    pub raw: Option<String>,
}

impl Payload {
    /// `shown` is the payload's beginning.
    #[must_use]
    pub fn new(shown: &[u8], bytes: u64) -> Self {
        let truncated = bytes > shown.len() as u64;
        let raw = match truncated {
            true => None,
            false => std::str::from_utf8(shown).ok().map(str::to_owned),
        };
        let is_json = |text: &&str| {
            serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok() && !text.trim().is_empty()
        };
        let (form, text) = match raw.as_deref().filter(is_json) {
            Some(json) => (Form::Json, indent(json)),
            None => (Form::Hex, dump(shown)),
        };
        Self {
            bytes,
            truncated,
            form,
            text,
            raw,
        }
    }
}

/// Indents valid JSON. Not parsed into values and written again: numbers, escapes, the order of
/// members and members that occur twice stay as they are.
fn indent(json: &str) -> String {
    let mut out = String::with_capacity(json.len() * 2);
    let mut depth = 0_usize;
    let mut chars = json.chars().filter(not_outer_space()).peekable();
    let mut in_string = Quoted::default();
    while let Some(c) = chars.next() {
        if in_string.next(c) {
            out.push(c);
            continue;
        }
        match c {
            '{' | '[' if matches!(chars.peek(), Some('}' | ']')) => out.push(c),
            '{' | '[' => {
                depth += 1;
                out.push(c);
                break_line(&mut out, depth);
            }
            '}' | ']' if out.ends_with(['{', '[']) => out.push(c),
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                break_line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                break_line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            other => out.push(other),
        }
    }
    out
}

/// Levels that are indented further; deeper ones would make a small payload a large text.
const DEPTH_MAX: usize = 32;

fn break_line(out: &mut String, depth: usize) {
    out.push('\n');
    out.extend(std::iter::repeat_n("  ", depth.min(DEPTH_MAX)));
}

/// Space between tokens, not in strings.
fn not_outer_space() -> impl FnMut(&char) -> bool {
    let mut quoted = Quoted::default();
    move |c| quoted.next(*c) || !c.is_ascii_whitespace()
}

/// Follows JSON's strings.
#[derive(Default)]
struct Quoted {
    inside: bool,
    escaped: bool,
}

impl Quoted {
    /// Is this character part of a string, its quotes included?
    fn next(&mut self, c: char) -> bool {
        if !self.inside {
            self.inside = c == '"';
            return self.inside;
        }
        match c {
            _ if self.escaped => self.escaped = false,
            '\\' => self.escaped = true,
            '"' => self.inside = false,
            _ => {}
        }
        true
    }
}

fn dump(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 5);
    for (line, chunk) in bytes.chunks(16).enumerate() {
        out.push_str(&format!("{:08x} ", line * 16));
        for index in 0..16 {
            match chunk.get(index) {
                Some(byte) => out.push_str(&format!(" {byte:02x}")),
                None => out.push_str("   "),
            }
        }
        out.push_str("  ");
        let printable = |byte: &u8| (0x20..0x7f).contains(byte);
        let shown = chunk
            .iter()
            .map(|b| if printable(b) { char::from(*b) } else { '.' });
        out.extend(shown);
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_indented_and_otherwise_left_as_it_is() {
        let json =
            r#" {"b":1.10,"a":[1e400,{"x\"}":" , : "}],"e":{},"f":[ ],"b":123456789012345678901}"#;
        let payload = Payload::new(json.as_bytes(), json.len() as u64);
        let expected = r#"{
  "b": 1.10,
  "a": [
    1e400,
    {
      "x\"}": " , : "
    }
  ],
  "e": {},
  "f": [],
  "b": 123456789012345678901
}"#;
        assert_eq!(
            (payload.form, payload.text.as_str()),
            (Form::Json, expected)
        );
        assert_eq!(payload.raw.as_deref(), Some(json));
    }

    #[test]
    fn what_is_not_json_is_dumped() {
        let payload = Payload::new(b"\x00\xffabc and more", 100);
        assert_eq!(payload.form, Form::Hex);
        assert!(payload.truncated && payload.raw.is_none());
        assert_eq!(
            payload.text,
            "00000000  00 ff 61 62 63 20 61 6e 64 20 6d 6f 72 65        ..abc and more\n"
        );
        assert_eq!(Payload::new(b"", 0).form, Form::Hex);
    }

    #[test]
    fn depth_does_not_make_a_small_payload_a_large_text() {
        let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
        let payload = Payload::new(deep.as_bytes(), 200);
        assert!(payload.text.len() < 20_000, "{}", payload.text.len());
    }
}
