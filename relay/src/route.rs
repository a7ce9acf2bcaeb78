//! Where a message goes.

use std::fmt;

use outbox::row::Row;

/// Exchange and routing key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Bytes of the row's `exchange`.
    pub exchange: Vec<u8>,
    /// Bytes of the row's `routing_key`.
    pub routing_key: Vec<u8>,
}

impl Route {
    /// The route of a row.
    pub fn of(row: &Row) -> Self {
        Self {
            exchange: row.exchange.clone(),
            routing_key: row.routing_key.clone(),
        }
    }

    /// Is it the route of this row?
    pub fn is_of(&self, row: &Row) -> bool {
        (&self.exchange, &self.routing_key) == (&row.exchange, &row.routing_key)
    }
}

/// Exchange and routing key, each quoted: both may be empty.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exchange = String::from_utf8_lossy(&self.exchange);
        let routing_key = String::from_utf8_lossy(&self.routing_key);
        write!(f, "{exchange:?} {routing_key:?}")
    }
}
