//! What a relay finds when it starts, and what `relay check` says of it: settings, servers, rights,
//! and tables that others have defined.

mod config;
mod definitions;
mod foreign_tables;
