//! Where a message goes.

use std::fmt;
use std::sync::Arc;

use outbox::row::Row;

/// Exchange and routing key. Rows that follow each other mostly share one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Bytes of the row's `exchange`.
    pub exchange: Arc<[u8]>,
    /// Bytes of the row's `routing_key`.
    pub routing_key: Arc<[u8]>,
}

impl Route {
    /// The route of a row.
    pub fn of(row: &Row) -> Self {
        Self::new(&row.exchange, &row.routing_key)
    }

    /// The route of these two.
    pub fn new(exchange: &[u8], routing_key: &[u8]) -> Self {
        Self {
            exchange: exchange.into(),
            routing_key: routing_key.into(),
        }
    }

    /// Is it the route of this row?
    pub fn is_of(&self, row: &Row) -> bool {
        self.is(&row.exchange, &row.routing_key)
    }

    /// Is it the route of these two?
    pub fn is(&self, exchange: &[u8], routing_key: &[u8]) -> bool {
        (&*self.exchange, &*self.routing_key) == (exchange, routing_key)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_both_of_its_names() {
        let route = Route::new(b"x", b"key");
        assert!(route.is(b"x", b"key"));
        assert!(!route.is(b"x", b"") && !route.is(b"", b"key"));
        assert_eq!(route.to_string(), r#""x" "key""#);
    }
}
