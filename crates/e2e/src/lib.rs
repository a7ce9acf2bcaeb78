//! Throwaway servers and processes for tests, the demo and the benchmark.
//!
//! Real MariaDB, real MySQL and real RabbitMQ run in directories of their own, on free ports of
//! 127.0.0.1, and are gone when their owner is: dropped, panicked, interrupted or killed.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! let db = e2e::shared::mariadb().await;
//! let database = db.create_database().await?;
//! let pool = database.pool()?;
//! sqlx::query("SELECT 1").execute(&pool).await?;
//!
//! let rabbit = e2e::shared::rabbit().await;
//! let vhost = rabbit.create_vhost().await?;
//! rabbit.management()?.declare_queue(&vhost.name, "q", serde_json::json!({})).await?;
//! # Ok(())
//! # }
//! ```

mod account;
pub mod cache;
pub mod certificates;
pub mod clock;
pub mod db;
pub mod fetch;
pub mod figures;
mod home;
#[cfg(feature = "otlp")]
pub mod otlp;
mod owner;
pub mod port;
pub mod product;
mod program;
pub mod prometheus;
pub mod provider;
pub mod proxy;
pub mod rabbit;
pub mod rig;
mod server;
pub mod shared;
pub mod shop;
pub mod stage;
pub mod wait;

pub use clock::Clock;
pub use db::{Db, DbOptions, Flavor, TestDatabase};
pub use provider::Provider;
pub use proxy::Proxy;
pub use rabbit::{Management, Rabbit, RabbitOptions, RabbitVersion, Vhost};
