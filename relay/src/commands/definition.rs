//! The outbox's definition: every difference from the product's own is harmless, warned of, or refused
//! with the ALTER that removes it. What is not named here does no harm: order and number of further
//! columns, collations of UTF-8, wider texts, row format, encryption, invisible and generated columns
//! that the product does not write, indexes of any kind but those below, partitions.

mod look;

use super::condition::{Condition, State};
use crate::engine::Mode;
pub(super) use look::look;

const NAME: &str = "definition";
/// `last_error` holds this many characters of ours.
const ERROR_CHARACTERS: u64 = 1000;
const TEXTS: [&str; 11] = [
    "char",
    "varchar",
    "tinytext",
    "text",
    "mediumtext",
    "longtext",
    "varbinary",
    "tinyblob",
    "blob",
    "mediumblob",
    "longblob",
];
const INTEGERS: [&str; 5] = ["tinyint", "smallint", "mediumint", "int", "bigint"];
const TIMES: [&str; 2] = ["datetime", "timestamp"];
/// What the relay itself writes.
const WRITTEN: [&str; 5] = [
    "status",
    "attempts",
    "next_attempt_at",
    "last_error",
    "sent_at",
];

/// What a column must be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Text or bytes, since the relay compares with it.
    Compared,
    /// Whatever a SELECT makes a text of, but BINARY, which pads what was written with zeros.
    Text,
    /// An integer that is never negative.
    Unsigned,
    Integer,
    Time,
}

/// Column, kind, may it be NULL, and the product's own definition.
const COLUMNS: [(&str, Kind, bool, &str); 16] = [
    (
        "id",
        Kind::Unsigned,
        false,
        "BIGINT UNSIGNED NOT NULL AUTO_INCREMENT",
    ),
    (
        "message_id",
        Kind::Compared,
        false,
        "CHAR(36) CHARACTER SET ascii COLLATE ascii_bin NOT NULL",
    ),
    (
        "aggregate_type",
        Kind::Text,
        false,
        "VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL",
    ),
    (
        "aggregate_id",
        Kind::Text,
        false,
        "VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL",
    ),
    (
        "event_type",
        Kind::Text,
        false,
        "VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL",
    ),
    (
        "exchange",
        Kind::Text,
        false,
        "VARCHAR(127) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT 'order-exchange'",
    ),
    (
        "routing_key",
        Kind::Text,
        false,
        "VARCHAR(255) CHARACTER SET ascii COLLATE ascii_bin NOT NULL",
    ),
    (
        "content_type",
        Kind::Text,
        false,
        "VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT 'application/json'",
    ),
    (
        "headers",
        Kind::Text,
        true,
        "TEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL",
    ),
    ("payload", Kind::Text, false, "LONGBLOB NOT NULL"),
    (
        "status",
        Kind::Integer,
        false,
        "TINYINT UNSIGNED NOT NULL DEFAULT 1",
    ),
    (
        "attempts",
        Kind::Unsigned,
        false,
        "INT UNSIGNED NOT NULL DEFAULT 0",
    ),
    ("next_attempt_at", Kind::Time, true, "DATETIME(6) NULL"),
    (
        "last_error",
        Kind::Text,
        true,
        "VARCHAR(1000) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL",
    ),
    (
        "created_at",
        Kind::Time,
        true,
        "DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6))",
    ),
    ("sent_at", Kind::Time, true, "DATETIME(6) NULL"),
];

/// A column of the outbox as the server tells it.
#[derive(Clone, Debug, Default)]
pub(super) struct Column {
    name: String,
    /// `varchar`.
    data_type: String,
    /// `varchar(128)`, with whatever more there is.
    column_type: String,
    charset: Option<String>,
    nullable: bool,
    default: Option<String>,
    extra: String,
    characters: Option<u64>,
}

/// The outbox as the server tells it.
#[derive(Clone, Debug, Default)]
pub(super) struct Definition {
    table: String,
    columns: Vec<Column>,
    /// Columns of the primary key.
    primary: Vec<String>,
    /// Columns of each other unique index.
    unique: Vec<Vec<String>>,
    /// As `name (BEFORE INSERT)`.
    triggers: Vec<String>,
    /// CHECK constraints, each with its clause.
    checks: Vec<(String, String)>,
    /// Tables with a foreign key to this one.
    referring: Vec<String>,
    /// Characters of `message_id` in the table of attempts.
    attempts_characters: Option<u64>,
}

/// A difference that does harm.
struct Finding {
    state: State,
    detail: String,
    fix: String,
}

/// Every difference that does harm in this mode; one condition that is met where there is none.
pub(super) fn judge(definition: &Definition, mode: Mode) -> Vec<Condition> {
    let found: Vec<Condition> = definition
        .findings(mode)
        .into_iter()
        .map(|finding| Condition::not(finding.state, NAME, finding.detail, finding.fix))
        .collect();
    if found.is_empty() {
        let all = "types, character sets, defaults, keys and triggers do no harm";
        return vec![Condition::ok(NAME, all)];
    }
    found
}

impl Definition {
    pub(super) fn has_integer_key(&self) -> bool {
        let key = self.columns.iter().find(|column| column.is("aggregate_id"));
        key.is_some_and(|column| INTEGERS.contains(&column.data_type.as_str()))
    }

    fn findings(&self, mode: Mode) -> Vec<Finding> {
        let mut found = Vec::new();
        for (name, kind, nullable, own) in COLUMNS {
            let Some(column) = self.columns.iter().find(|column| column.is(name)) else {
                continue;
            };
            found.extend(self.type_of(column, kind, own));
            found.extend(self.written(column, own));
            found.extend(self.null(column, nullable, own));
            found.extend(self.by_default(column, own));
        }
        if mode == Mode::Cdc {
            let columns = self.columns.iter();
            found.extend(columns.filter_map(|column| self.unreadable(column)));
        }
        found.extend(self.further());
        found.extend(self.keys());
        found.extend(self.surroundings());
        found
    }

    fn alter(&self, change: &str) -> String {
        format!("ALTER TABLE `{}` {change}", self.table)
    }

    /// The ALTER that keeps a text's own width.
    fn modify(&self, column: &Column, own: &str) -> String {
        let wider = column.data_type.ends_with("char") || column.data_type.ends_with("text");
        let own = match own.split_once(' ') {
            Some((_, rest)) if wider => {
                // The payload's own definition, which is bytes, names none.
                let named = rest.starts_with("CHARACTER SET");
                let charset = if named { "" } else { "CHARACTER SET utf8mb4 " };
                format!("{} {charset}{rest}", column.column_type.to_uppercase())
            }
            _ => own.to_owned(),
        };
        self.alter(&format!("MODIFY `{}` {own}", column.name))
    }

    fn type_of(&self, column: &Column, kind: Kind, own: &str) -> Option<Finding> {
        let Column {
            name,
            data_type,
            column_type,
            ..
        } = column;
        let is = |types: &[&str]| types.contains(&data_type.as_str());
        let fits = match kind {
            Kind::Compared => is(&TEXTS),
            Kind::Text => data_type != "binary",
            Kind::Unsigned => is(&INTEGERS) && column_type.contains("unsigned"),
            Kind::Integer => is(&INTEGERS),
            Kind::Time => is(&TIMES),
        };
        (!fits).then(|| Finding {
            state: State::Wrong,
            detail: format!("`{name}` is {column_type}, which the relay can't read"),
            fix: self.alter(&format!("MODIFY `{name}` {own}")),
        })
    }

    /// What the relay writes must take what it writes.
    fn written(&self, column: &Column, own: &str) -> Option<Finding> {
        let Column { name, extra, .. } = column;
        let wrong = |detail: String| {
            Some(Finding {
                state: State::Wrong,
                detail,
                fix: self.alter(&format!("MODIFY `{name}` {own}")),
            })
        };
        if WRITTEN.contains(&name.to_lowercase().as_str()) && column.is_generated() {
            return wrong(format!(
                "`{name}` is a generated column, and the relay writes it"
            ));
        }
        if extra.to_lowercase().contains("on update") && !column.is("created_at") {
            return wrong(format!("`{name}` changes with every mark (ON UPDATE)"));
        }
        let short = column
            .characters
            .is_some_and(|most| most < ERROR_CHARACTERS);
        let narrow = column
            .charset
            .as_deref()
            .is_some_and(|charset| charset != "utf8mb4");
        if column.is("last_error") && short {
            return wrong(format!(
                "`{name}` is {}, and a failure's text that is longer can't be recorded",
                column.column_type
            ));
        }
        if column.is("last_error") && narrow {
            return Some(Finding {
                state: State::Warning,
                detail: format!(
                    "`{name}` is in the character set {}: a failure's text with other characters \
                     can't be recorded",
                    column.charset.as_deref().unwrap_or_default()
                ),
                fix: self.alter(&format!("MODIFY `{name}` {own}")),
            });
        }
        None
    }

    fn null(&self, column: &Column, may: bool, own: &str) -> Option<Finding> {
        let name = &column.name;
        let detail = match (column.nullable, may) {
            (true, false) => format!("`{name}` may be NULL, and one such row stops every scan"),
            (false, true) if WRITTEN.contains(&name.as_str()) => {
                format!("`{name}` can't be NULL, which says that a row was never tried")
            }
            _ => return None,
        };
        Some(Finding {
            state: State::Wrong,
            detail,
            fix: self.modify(column, own),
        })
    }

    /// What a plain INSERT gets.
    fn by_default(&self, column: &Column, own: &str) -> Option<Finding> {
        let default = column
            .default
            .as_deref()
            .unwrap_or("NULL")
            .trim_matches('\'');
        let lower = default.to_lowercase();
        let detail = match column.name.to_lowercase().as_str() {
            "status" if default != "1" => {
                format!("`status` is {default} by default: a plain INSERT is never sent")
            }
            "attempts" | "next_attempt_at" | "sent_at" if !matches!(default, "0" | "NULL") => {
                format!(
                    "`{}` is {default} by default: new rows are not sent at once",
                    column.name
                )
            }
            "created_at" if lower == "null" => {
                "`created_at` has no default: a row without it is parked".to_owned()
            }
            "created_at"
                if column.data_type == "datetime"
                    && (lower.starts_with("current_timestamp") || lower.starts_with("now")) =>
            {
                "`created_at` is by default the time of the writer's zone and not UTC".to_owned()
            }
            "created_at" if column.extra.to_lowercase().contains("on update") => {
                "`created_at` changes with every mark (ON UPDATE)".to_owned()
            }
            "id" if !column.extra.to_lowercase().contains("auto_increment") => {
                "`id` is not AUTO_INCREMENT: a plain INSERT gets none".to_owned()
            }
            _ => return None,
        };
        Some(Finding {
            state: State::Warning,
            detail,
            fix: self.alter(&format!("MODIFY `{}` {own}", column.name)),
        })
    }

    /// A column that the binlog's decoder can't step over, be it the product's or a further one.
    fn unreadable(&self, column: &Column) -> Option<Finding> {
        let Column {
            name, column_type, ..
        } = column;
        if !column_type.contains("mariadb-5.3") {
            return None;
        }
        let plain = column_type.split(" /*").next().unwrap_or(column_type);
        let null = if column.nullable { "NULL" } else { "NOT NULL" };
        Some(Finding {
            state: State::Wrong,
            detail: format!(
                "`{name}` has the format of MariaDB 5.3, and no id in the binlog can be decoded"
            ),
            fix: self.alter(&format!("MODIFY `{name}` {plain} {null}")),
        })
    }

    /// Further columns that a plain INSERT does not know.
    fn further(&self) -> Option<Finding> {
        let product = |column: &&Column| COLUMNS.iter().any(|(name, ..)| column.is(name));
        let needed: Vec<&str> = self
            .columns
            .iter()
            .filter(|column| !product(column) && !column.nullable && column.default.is_none())
            .filter(|column| !column.is_generated() && !column.extra.contains("auto_increment"))
            .map(|column| column.name.as_str())
            .collect();
        let first = needed.first()?;
        Some(Finding {
            state: State::Warning,
            detail: format!(
                "{} must be given by every INSERT: a message that is edited, and the canary, do not",
                needed.join(", ")
            ),
            fix: self.alter(&format!("ALTER COLUMN `{first}` SET DEFAULT …")),
        })
    }

    fn keys(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        let mut add = |state, detail: String, fix: String| {
            found.push(Finding { state, detail, fix });
        };
        let is =
            |column: Option<&String>, name| column.is_some_and(|c| c.eq_ignore_ascii_case(name));
        if !is(self.primary.first(), "id") {
            let drop = if self.primary.is_empty() {
                ""
            } else {
                "DROP PRIMARY KEY, "
            };
            add(
                State::Wrong,
                "`id` is not the first column of the primary key: a mark reads the whole table"
                    .into(),
                self.alter(&format!("{drop}ADD PRIMARY KEY (`id`)")),
            );
        }
        let alone = |columns: &Vec<String>| columns.len() == 1 && is(columns.first(), "message_id");
        if !self.unique.iter().any(alone) && !alone(&self.primary) {
            add(
                State::Warning,
                "`message_id` has no unique index: one id may be two messages, and the second is dropped \
                 by the consumer's inbox"
                    .into(),
                self.alter("ADD UNIQUE KEY `outbox_message_id` (`message_id`)"),
            );
        }
        found
    }

    /// What acts on the table from outside.
    fn surroundings(&self) -> Vec<Finding> {
        let warning = |detail: String, fix: String| Finding {
            state: State::Warning,
            detail,
            fix,
        };
        let mut found = Vec::new();
        if !self.triggers.is_empty() {
            found.push(warning(
                format!(
                    "triggers on the table: {}. One that changes what is inserted changes messages, one \
                     that fails an UPDATE or DELETE stops marks or clean-up",
                    self.triggers.join(", ")
                ),
                "see that they do neither, or DROP TRIGGER".into(),
            ));
        }
        for (name, clause) in &self.checks {
            if WRITTEN
                .iter()
                .any(|column| clause.to_lowercase().contains(column))
            {
                found.push(warning(
                    format!(
                        "the CHECK constraint `{name}` ({clause}) may refuse what the relay writes"
                    ),
                    self.alter(&format!("DROP CONSTRAINT `{name}`")),
                ));
            }
        }
        if !self.referring.is_empty() {
            found.push(warning(
                format!(
                    "{} refer to the table by foreign keys: a sent row that they hold is not deleted",
                    self.referring.join(", ")
                ),
                "drop these foreign keys, or set RELAY_RETENTION=0s".into(),
            ));
        }
        let message_id = self.columns.iter().find(|column| column.is("message_id"));
        if let Some(wide) = message_id.and_then(|column| column.characters)
            && self.attempts_characters.is_some_and(|most| most < wide)
        {
            found.push(warning(
                format!(
                    "`message_id` is wider than that of `{}_attempts`: a failure of a longer id can't be \
                     recorded",
                    self.table
                ),
                format!(
                    "ALTER TABLE `{}_attempts` MODIFY `message_id` VARCHAR({wide}) CHARACTER SET ascii \
                     COLLATE ascii_bin NOT NULL",
                    self.table
                ),
            ));
        }
        found
    }
}

impl Column {
    fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }

    /// MySQL calls a default that is an expression `DEFAULT_GENERATED`.
    fn is_generated(&self) -> bool {
        let extra = self.extra.to_uppercase();
        extra.contains("VIRTUAL") || extra.contains("STORED") || extra.contains("PERSISTENT")
    }
}
