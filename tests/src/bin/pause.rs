//! What runs in a pod's sandbox: nothing, until it is killed. It uses the standard library alone, so that the compiler
//! makes a small static file of it without any crate.

fn main() {
    loop {
        std::thread::park();
    }
}
