//! What the text of a QUERY event may do to the outbox. No IO.

/// What a QUERY event means for the outbox.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Statement<'a> {
    Begin,
    Commit,
    Rollback,
    /// SAVEPOINT, XA END.
    Harmless,
    XaStart(&'a [u8]),
    XaCommit(&'a [u8]),
    XaRollback(&'a [u8]),
    /// DDL that does not name the outbox: it can't add rows to it.
    Foreign,
    /// Anything else, `ROLLBACK TO` and DML in STATEMENT format among it.
    Other,
}

/// Statements that write rows of no table but the one they name. DML is not here: a trigger or a
/// stored function it calls may write any table.
const DDL: [&[u8]; 14] = [
    b"CREATE ",
    b"ALTER ",
    b"DROP ",
    b"TRUNCATE ",
    b"RENAME ",
    b"GRANT ",
    b"REVOKE ",
    b"FLUSH",
    b"ANALYZE ",
    b"OPTIMIZE ",
    b"REPAIR ",
    b"SET ",
    b"INSTALL ",
    b"UNINSTALL ",
];

impl<'a> Statement<'a> {
    pub(super) fn of(text: &'a [u8], table: &[u8]) -> Self {
        let starts = |word: &[u8]| {
            text.get(..word.len())
                .is_some_and(|head| head.eq_ignore_ascii_case(word))
        };
        let rest = |word: &[u8]| text[word.len()..].trim_ascii();
        if text.eq_ignore_ascii_case(b"BEGIN") || starts(b"START TRANSACTION") {
            Self::Begin
        } else if text.eq_ignore_ascii_case(b"COMMIT") {
            Self::Commit
        } else if text.eq_ignore_ascii_case(b"ROLLBACK") {
            Self::Rollback
        } else if starts(b"SAVEPOINT") || starts(b"RELEASE SAVEPOINT") || starts(b"XA END") {
            Self::Harmless
        } else if starts(b"XA START") {
            Self::XaStart(rest(b"XA START"))
        } else if starts(b"XA COMMIT") {
            Self::XaCommit(rest(b"XA COMMIT"))
        } else if starts(b"XA ROLLBACK") {
            Self::XaRollback(rest(b"XA ROLLBACK"))
        } else if DDL.iter().any(|word| starts(word)) && !contains(text, table) {
            Self::Foreign
        } else {
            Self::Other
        }
    }
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len())
        .any(|part| part.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_told_apart_by_what_they_may_do_to_the_outbox() {
        let of = |text: &'static str| Statement::of(text.as_bytes(), b"outbox");
        assert_eq!(of("BEGIN"), Statement::Begin);
        assert_eq!(of("COMMIT"), Statement::Commit);
        assert_eq!(of("SAVEPOINT `a`"), Statement::Harmless);
        assert_eq!(of("ROLLBACK TO `a`"), Statement::Other);
        assert_eq!(
            of("XA START X'61',X'',1"),
            Statement::XaStart(b"X'61',X'',1")
        );
        assert_eq!(
            of("XA COMMIT X'61',X'',1"),
            Statement::XaCommit(b"X'61',X'',1")
        );
        assert_eq!(of("CREATE TABLE other (a INT)"), Statement::Foreign);
        assert_eq!(
            of("alter table `OutBox` add column b int"),
            Statement::Other
        );
        assert_eq!(of("DROP DATABASE other"), Statement::Foreign);
        assert_eq!(of("INSERT INTO other VALUES (1)"), Statement::Other);
    }
}
