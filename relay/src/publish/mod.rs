//! Publishing to RabbitMQ with publisher confirms.

pub mod batch;
pub mod connection;
pub mod publisher_task;
pub mod spans;
