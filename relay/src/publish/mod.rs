//! Publishing to RabbitMQ with publisher confirms.

pub mod batch;
pub mod confirms;
pub mod connection;
pub mod publisher_task;
pub mod spans;
