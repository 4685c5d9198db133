//! Called by a real runtime: containerd runs pods as the kubelet asks it to, by the configuration that the agent wrote, and
//! each has what it selects, its status in the API says so, and nothing is left of it, whatever happens to the runtime, the
//! agent, the primary network or the machine meanwhile.

mod agent;
mod churn;
mod container;
mod hot_plug;
mod pods;
mod primary;
mod reconcile;
mod runtime;
mod stage;
