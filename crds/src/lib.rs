//! The words: Kubernetes API types, annotation grammar and network-status. No I/O.
