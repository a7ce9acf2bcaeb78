//! svc-kit
