//! Where rows come from: the binlog and the table.

pub mod binlog;
pub mod table;
