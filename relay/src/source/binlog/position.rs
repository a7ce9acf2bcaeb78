//! Where the binlog ends.

/// The statement that shows the binlog's end: renamed in MySQL 8.2, the old name gone in 8.4.
pub fn position_statement(version: &str) -> &'static str {
    let mut parts = version
        .split(['.', '-'])
        .map(|part| part.parse::<u32>().unwrap_or(0));
    let number = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if !version.contains("MariaDB") && number >= (8, 2) {
        "SHOW BINARY LOG STATUS"
    } else {
        "SHOW MASTER STATUS"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_position_statement_follows_the_server() {
        assert_eq!(position_statement("9.7.0"), "SHOW BINARY LOG STATUS");
        assert_eq!(position_statement("8.0.36-debian"), "SHOW MASTER STATUS");
        assert_eq!(
            position_statement("10.11.6-MariaDB-1"),
            "SHOW MASTER STATUS"
        );
        assert_eq!(position_statement("11.4.2-MariaDB"), "SHOW MASTER STATUS");
    }
}
