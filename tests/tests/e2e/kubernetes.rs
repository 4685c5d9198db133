//! The Kubernetes store and the agent's cache against an API server: what is asked, what is written, and what becomes of a pod
//! when the server is slow, broken or gone. What needs no broken server runs unchanged on a real cluster (`make test-cluster`).

mod cache;
mod identity;
mod outage;
mod refusals;
mod requests;
mod stage;
