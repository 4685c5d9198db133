//! The tests' own API server, held against what a real one answered: by the recordings, by requests whose answer the real
//! one documents, and by a kube client as our programs use it.

mod admission;
mod clients;
mod controls;
mod fixture;
mod reads;
mod recorded;
mod writes;
