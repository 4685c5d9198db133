//! The image of a pod's sandbox, built here: one static program, `pause.rs`.

use crate::image::Image;

/// The program, as `build.rs` compiled it.
const PAUSE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pause"));

/// The image's name.
pub const NAME: &str = "musubi.test/pause:1";

/// The archive.
///
/// # Panics
/// When the program is none that an image may hold.
#[must_use]
pub fn archive() -> Vec<u8> {
    let (repository, version) = NAME.split_once(':').expect("a tag");
    let image = Image { repository, version, description: "does nothing until it is killed", program: PAUSE };
    image.archive().expect("an image")
}
