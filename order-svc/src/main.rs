//! order-svc
fn main() {}
