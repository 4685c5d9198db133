//! What the host and the machine's init (`src/bin/vm-init.rs`) have agreed on: where the init finds its orders, and how
//! it reports the end. Both sides are built from this one file.

use std::fmt;

/// Environment variable that is set for every program in the machine.
pub const INSIDE: &str = "MUSUBI_VM";
/// Folder of the modules, uncompressed.
pub const MODULES: &str = "/vm/modules";
/// Names of the files in [`MODULES`], each after those it depends on, in the form of [`join`].
pub const MODULE_ORDER: &str = "/vm/module-order";
/// The program and its arguments, in the form of [`join`].
pub const COMMAND: &str = "/vm/command";
/// `NAME=value` pairs, in the form of [`join`].
pub const ENVIRONMENT: &str = "/vm/environment";
/// The serial port that carries the program's output; the kernel and the init itself write to the first one.
pub const OUTPUT_PORT: &str = "/dev/ttyS1";

const END: &str = "\x1emusubi-vm ";

/// True inside the virtual machine.
#[must_use]
pub fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// One string after the other, each ended by a zero byte.
#[must_use]
pub fn join<'a>(strings: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
    strings.into_iter().flat_map(|string| [string, "\0"]).collect::<String>().into_bytes()
}

/// The strings that [`join`] was given.
#[must_use]
pub fn split(joined: &str) -> Vec<&str> {
    joined.split_terminator('\0').collect()
}

/// The last thing the init writes to [`OUTPUT_PORT`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The program ended with this code.
    Exited(i32),
    /// The program was not started, and why.
    Failed(String),
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "{END}exited {code}"),
            Self::Failed(reason) => write!(f, "{END}failed {reason}"),
        }
    }
}

impl Ending {
    /// Parts the program's output from the ending; `None` when the machine stopped before it wrote one.
    #[must_use]
    pub fn find(output: &str) -> Option<(&str, Self)> {
        let (output, ending) = output.rsplit_once(END)?;
        let (word, rest) = ending.trim_end().split_once(' ')?;
        match word {
            "exited" => Some((output, Self::Exited(rest.parse().ok()?))),
            "failed" => Some((output, Self::Failed(rest.to_owned()))),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_joined_is_split_again() {
        for strings in [vec![], vec![""], vec!["a"], vec!["a", "", "two words\n", "é"]] {
            let joined = String::from_utf8(join(strings.iter().copied())).unwrap();
            assert_eq!(split(&joined), strings);
        }
    }

    #[test]
    fn the_ending_is_parted_from_output_that_has_no_last_newline() {
        let failed = Ending::Failed("no such file".into());
        assert_eq!(Ending::find(&format!("text{}\n", Ending::Exited(3))), Some(("text", Ending::Exited(3))));
        assert_eq!(Ending::find(&format!("a\nb\n{failed}\n")), Some(("a\nb\n", failed)));
    }

    #[test]
    fn output_that_was_cut_off_has_no_ending() {
        for output in ["", "text\n", "text\x1emusubi-vm ", "text\x1emusubi-vm exi"] {
            assert_eq!(Ending::find(output), None, "{output:?}");
        }
    }
}
