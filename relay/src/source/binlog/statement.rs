//! What the text of a QUERY event may do to the outbox. No IO.

/// What a QUERY event means for the outbox.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Statement<'a> {
    /// BEGIN, and MySQL's XA START: MariaDB has that in the GTID event.
    Begin,
    Commit,
    Rollback,
    /// SAVEPOINT, ROLLBACK TO, XA END. What is rolled back is not in the table, and its ids do no harm.
    Harmless,
    /// With the id as [`super::event::prepared`] gives it, but for upper and lower case.
    XaCommit(&'a [u8]),
    XaRollback(&'a [u8]),
    /// DDL that names no table of the outbox's name, or one of another schema, and computes no rows: it
    /// can't add any.
    Foreign,
    /// Anything else, DML in STATEMENT format among it.
    Other,
}

const HARMLESS: [&[u8]; 4] = [
    b"SAVEPOINT",
    b"RELEASE SAVEPOINT",
    b"ROLLBACK TO",
    b"XA END",
];

/// Statements that write rows of no table but the one they name. DML is not here: a trigger or a
/// stored function it calls may write any table. MariaDB's ANALYZE runs the DML behind it.
const DDL: [&[u8]; 15] = [
    b"CREATE ",
    b"ALTER ",
    b"DROP ",
    b"TRUNCATE ",
    b"RENAME ",
    b"GRANT ",
    b"REVOKE ",
    b"FLUSH",
    b"ANALYZE TABLE ",
    b"OPTIMIZE ",
    b"REPAIR ",
    b"SET PASSWORD",
    b"SET DEFAULT ROLE",
    b"INSTALL ",
    b"UNINSTALL ",
];

impl<'a> Statement<'a> {
    /// `default` is the schema the statement ran in; then the outbox's schema and table.
    pub(super) fn of(text: &'a [u8], default: &[u8], outbox: (&[u8], &[u8])) -> Self {
        let starts = |word: &[u8]| {
            text.get(..word.len())
                .is_some_and(|head| head.eq_ignore_ascii_case(word))
        };
        let rest = |word: &[u8]| text[word.len()..].trim_ascii();
        let begins = starts(b"START TRANSACTION") || starts(b"XA START");
        if begins || text.eq_ignore_ascii_case(b"BEGIN") {
            Self::Begin
        } else if text.eq_ignore_ascii_case(b"COMMIT") {
            Self::Commit
        } else if text.eq_ignore_ascii_case(b"ROLLBACK") {
            Self::Rollback
        } else if HARMLESS.iter().any(|word| starts(word)) {
            Self::Harmless
        } else if starts(b"XA COMMIT") {
            Self::XaCommit(rest(b"XA COMMIT"))
        } else if starts(b"XA ROLLBACK") {
            Self::XaRollback(rest(b"XA ROLLBACK"))
        } else if starts(b"CREATE ") && computes_rows(text) {
            Self::Other
        } else if DDL.iter().any(|word| starts(word)) && !names(text, default, outbox) {
            Self::Foreign
        } else {
            Self::Other
        }
    }
}

/// CREATE TABLE … SELECT f() and CREATE TABLE … VALUES (f()) call f, which may write any table.
fn computes_rows(text: &[u8]) -> bool {
    contains(text, b"SELECT") || contains(text, b"VALUES")
}

/// May the statement concern the outbox? Each service of a server may have one under the same name, and
/// only a text that spells the other's schema reaches it from elsewhere.
fn names(text: &[u8], default: &[u8], (schema, table): (&[u8], &[u8])) -> bool {
    // Another spelling is possible for these only with quotes or in another character set.
    let plain = schema
        .iter()
        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    contains(text, table)
        && (!plain || default.eq_ignore_ascii_case(schema) || contains(text, schema))
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len())
        .any(|part| part.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_distinguished_by_what_they_may_do_to_the_outbox() {
        let of =
            |text: &'static str| Statement::of(text.as_bytes(), b"orders", (b"orders", b"outbox"));
        assert_eq!(of("BEGIN"), Statement::Begin);
        assert_eq!(of("COMMIT"), Statement::Commit);
        assert_eq!(of("SAVEPOINT `a`"), Statement::Harmless);
        assert_eq!(of("ROLLBACK TO `a`"), Statement::Harmless);
        assert_eq!(of("XA START X'61',X'',1"), Statement::Begin);
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
        assert_eq!(of("ANALYZE TABLE other"), Statement::Foreign);
        let of =
            |text: &'static str| Statement::of(text.as_bytes(), b"pay", (b"orders", b"outbox"));
        assert_eq!(of("CREATE TABLE outbox (a INT)"), Statement::Foreign);
        assert_eq!(of("RENAME TABLE outbox TO Orders.outbox"), Statement::Other);
        assert_eq!(of("INSERT INTO other VALUES (1)"), Statement::Other);
    }

    /// Each was seen in the binlog of MariaDB 10.11 as nothing but its text, after rows of the outbox.
    #[test]
    fn a_statement_that_calls_a_function_or_a_trigger_may_write_to_the_outbox() {
        for text in [
            "create table other as select shop.f() as a",
            "CREATE OR REPLACE TABLE other (a INT) AS VALUES (shop.f())",
            "create table other with q as (select f()) select * from q",
            "analyze insert into other values (1)",
            "ANALYZE FORMAT=JSON UPDATE other SET a = f()",
        ] {
            let statement = Statement::of(text.as_bytes(), b"pay", (b"orders", b"outbox"));
            assert_eq!(statement, Statement::Other, "{text}");
        }
    }
}
