//! The head: configuration, plan, engine, records and the command line.
