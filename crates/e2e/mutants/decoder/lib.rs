//! The binlog decoders as `make mutants` builds them: the paths are those of the relay.

pub mod engine {
    pub mod position;
}
pub mod leadership {
    pub mod server_clock;
}
pub mod source {
    pub mod binlog {
        pub mod commit_clock;
        mod event;
        pub mod row_decoder;
        mod statement;
        pub mod transaction;
    }
}
