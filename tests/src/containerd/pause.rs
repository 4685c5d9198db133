//! What runs in a pod's sandbox: nothing, until it is killed. `build.rs` compiles it by itself, so it uses the standard
//! library alone.

fn main() {
    loop {
        std::thread::park();
    }
}
