//! The operator's page: forms over [`Console`], for people with a browser.

use axum::Router;

use crate::console::Console;

/// The page's routes, under `/ops`.
pub fn router(_console: &Console) -> Router {
    Router::new()
}
