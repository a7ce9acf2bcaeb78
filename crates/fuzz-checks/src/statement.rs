//! The text of a QUERY event → what it may do to the outbox.

use relay::engine::position::Position;
use relay::source::binlog::row_decoder::Columns;
use relay::source::binlog::transaction::Decoder;

use crate::events::{Head, event};

/// Outboxes whose statements are looked at: the first byte of the input selects one.
const OUTBOXES: [(&str, &str); 3] = [
    ("shop", "outbox"),
    ("my-shop", "Outbox_2"),
    ("l\u{e4}den", "outbox"),
];

const QUERY: u8 = 2;
const XID: u8 = 16;
const MARIADB_GTID: u8 = 162;
/// `FL_STANDALONE`.
const STANDALONE: u8 = 1;

/// The input: an outbox, the session's schema behind its length, the text. A statement that may write
/// to the outbox leaves a doubt, as a transaction of its own and inside one.
pub fn statement(data: &[u8]) {
    let Some((&outbox, rest)) = data.split_first() else {
        return;
    };
    let Some((&length, rest)) = rest.split_first() else {
        return;
    };
    let (default, text) = rest.split_at(usize::from(length).min(rest.len()));
    let outbox = OUTBOXES[usize::from(outbox) % OUTBOXES.len()];
    let alone = leaves_a_change(outbox, default, text, STANDALONE);
    let inside = leaves_a_change(outbox, default, text, 0);
    if may_write(text, default, outbox) {
        let text = String::from_utf8_lossy(text);
        assert!(alone, "alone, without a doubt: {text}");
        assert!(inside, "in a transaction, without a doubt: {text}");
    }
}

/// A transaction with nothing but the statement.
fn leaves_a_change(outbox: (&str, &str), default: &[u8], text: &[u8], flags: u8) -> bool {
    let columns = ["id".to_owned(), "status".to_owned()];
    let columns = Columns::locate(&columns).expect("both columns are there");
    let mut decoder = Decoder::new(outbox, columns, Position::new("binlog.000001", 4));
    let mut begin = [0; 19];
    begin[12] = flags;
    // Thread, time, length of the schema, error, length of the status variables.
    let mut query = vec![0; 8];
    query.push(u8::try_from(default.len()).expect("its length was in a byte"));
    query.extend([0; 4]);
    query.extend(default);
    query.push(0);
    query.extend(text);
    let events = [
        (MARIADB_GTID, begin.as_slice()),
        (QUERY, &query),
        (XID, &[0; 8]),
    ];
    let changes = events.map(|(kind, data)| {
        let head = Head {
            kind,
            ..Head::default()
        };
        decoder.feed(&event(head, data)).is_some()
    });
    changes.contains(&true)
}

/// Statements that a trigger or a function they call makes write to any table.
const DML: [&str; 13] = [
    "INSERT", "REPLACE", "UPDATE", "DELETE", "LOAD", "CALL", "DO", "SELECT", "WITH", "TABLE",
    "VALUES", "HANDLER", "IMPORT",
];
const DDL: [&str; 6] = ["CREATE", "ALTER", "DROP", "TRUNCATE", "RENAME", "REPAIR"];

/// What the statement may do, by its words: an identifier in any quotes is what is between them.
fn may_write(text: &[u8], default: &[u8], (schema, table): (&str, &str)) -> bool {
    let words = words(text);
    let word = |at: usize| words.get(at).and_then(Word::plain).unwrap_or_default();
    let first = word(0).to_ascii_uppercase();
    let has = |wanted: &[&str]| {
        let mut plain = words.iter().filter_map(Word::plain);
        plain.any(|word| {
            wanted
                .iter()
                .any(|wanted| word.eq_ignore_ascii_case(wanted))
        })
    };
    if DML.contains(&first.as_str()) {
        return true;
    }
    // MariaDB runs the statement: ANALYZE UPDATE …, ANALYZE FORMAT=JSON INSERT …
    if first == "ANALYZE" && !has(&["TABLE", "TABLES"]) {
        return has(&DML);
    }
    let computed = first == "CREATE" && has(&["TABLE"]) && has(&["SELECT"]);
    computed || (DDL.contains(&first.as_str()) && names(&words, default, schema, table))
}

fn names(words: &[Word], default: &[u8], schema: &str, table: &str) -> bool {
    let is = |word: &Word, name: &str| word.text.eq_ignore_ascii_case(name.as_bytes());
    words.iter().enumerate().any(|(at, word)| {
        let qualified = at >= 2 && words[at - 1].is_dot();
        is(word, table)
            && match qualified {
                true => is(&words[at - 2], schema),
                false => default.eq_ignore_ascii_case(schema.as_bytes()),
            }
    })
}

struct Word {
    text: Vec<u8>,
    quoted: bool,
}

impl Word {
    fn plain(&self) -> Option<&str> {
        let text = std::str::from_utf8(&self.text).ok()?;
        (!self.quoted).then_some(text)
    }

    fn is_dot(&self) -> bool {
        !self.quoted && self.text == b"."
    }
}

/// Words, quoted texts without their quotes, and single other characters. What an executable comment
/// has in it counts; any other comment is a space.
fn words(mut text: &[u8]) -> Vec<Word> {
    let mut words = Vec::new();
    while let Some((&first, rest)) = text.split_first() {
        let (word, rest) = match first {
            b'`' | b'"' | b'\'' => quoted(first, rest),
            b'/' if rest.starts_with(b"*!") || rest.starts_with(b"*M!") => {
                let code = rest
                    .iter()
                    .position(|byte| *byte == b'!')
                    .map_or(rest.len(), |at| at + 1);
                let version = rest[code..].iter().take_while(|byte| byte.is_ascii_digit());
                let after = code + version.count();
                text = &rest[after..];
                continue;
            }
            b'/' if rest.starts_with(b"*") => {
                let end = rest[1..].windows(2).position(|end| end == b"*/");
                text = end.map_or(&[], |end| &rest[end + 3..]);
                continue;
            }
            _ if first.is_ascii_whitespace() => {
                text = rest;
                continue;
            }
            _ if is_word(first) => {
                let length = text.iter().take_while(|byte| is_word(**byte)).count();
                (plain(&text[..length]), &text[length..])
            }
            _ => (plain(&text[..1]), rest),
        };
        words.push(word);
        text = rest;
    }
    words
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || !byte.is_ascii()
}

fn plain(text: &[u8]) -> Word {
    Word {
        text: text.to_vec(),
        quoted: false,
    }
}

/// A quote within is written twice.
fn quoted(quote: u8, mut rest: &[u8]) -> (Word, &[u8]) {
    let mut text = Vec::new();
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        if byte == quote {
            match rest.split_first() {
                Some((&again, behind)) if again == quote => rest = behind,
                _ => break,
            }
        }
        text.push(byte);
    }
    (Word { text, quoted: true }, rest)
}
