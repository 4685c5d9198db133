//! The head: configuration, plan, checks, engine, records, stores and the command line of Musubi.
//!
//! One request is one walk: [`config`] and [`networks`] find out what is wanted, [`plan`] decides without any I/O, and
//! [`engine`] carries it out, writing a [`record`] before it acts.

pub mod agent;
pub mod cancel;
pub mod check;
pub mod cli;
pub mod config;
pub mod cri;
pub mod devices;
pub mod engine;
pub mod grpc;
pub mod lock;
pub mod log;
pub mod networks;
pub mod plan;
pub mod record;
pub mod records;
pub mod status;
pub mod store;
