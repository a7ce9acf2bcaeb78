//! pay-svc
fn main() {}
