//! What ADD refuses, as pure functions, so that whoever checks earlier gives the same answer in the same words.

pub mod definition;
pub mod pod;
