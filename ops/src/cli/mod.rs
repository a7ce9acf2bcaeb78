//! The same verbs on the command line, on the database directly.
