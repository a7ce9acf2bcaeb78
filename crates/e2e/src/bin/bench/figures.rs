//! What a key has measured.

use serde_json::{Map, Value};

/// What a key has measured on one server.
#[derive(Debug)]
pub(crate) struct Figures {
    /// The limit.
    pub(crate) raw: f64,
    /// The product.
    pub(crate) product: f64,
    /// Product ÷ raw, or what the key says instead.
    pub(crate) ratio: f64,
    /// Whether the target is met; `None` where there is none.
    pub(crate) met: Option<bool>,
    /// Whatever else there is to know: sizes, percentiles, single rounds.
    pub(crate) detail: Map<String, Value>,
}

impl Figures {
    /// Of medians: the ratio is product ÷ raw.
    pub(crate) fn new(raw: f64, product: f64) -> Self {
        let ratio = if raw > 0.0 { product / raw } else { 0.0 };
        Self {
            raw,
            product,
            ratio,
            met: None,
            detail: Map::new(),
        }
    }

    /// Whether the target is met.
    pub(crate) fn met(mut self, test: impl FnOnce(&Self) -> bool) -> Self {
        self.met = Some(test(&self));
        self
    }

    /// One more thing to know.
    pub(crate) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.detail.insert(name.to_owned(), value.into());
        self
    }
}

/// As many digits as say something.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 1000.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}
