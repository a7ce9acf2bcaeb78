//! pay-svc
