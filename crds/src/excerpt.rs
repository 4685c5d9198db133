//! How foreign text is shown in an error: on one line, printable, and short whatever its size.

/// The longest piece of foreign text that an error repeats, in characters.
const LONGEST: usize = 64;

/// `text` escaped, and cut where it is longer than a person would read.
pub(crate) fn excerpt(text: &str) -> String {
    excerpt_of(text, LONGEST)
}

/// `text` escaped, and cut after `longest` characters.
pub(crate) fn excerpt_of(text: &str, longest: usize) -> String {
    let mut characters = text.chars();
    let mut shown: String = characters.by_ref().take(longest).flat_map(char::escape_debug).collect();
    if characters.next().is_some() {
        shown.push('…');
    }
    shown
}

/// [`excerpt`] between double quotes.
pub(crate) fn quoted(text: &str) -> String {
    format!("\"{}\"", excerpt(text))
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn foreign_text_stays_on_one_short_line() {
        assert_eq!(quoted("a"), "\"a\"");
        assert_eq!(quoted("a\nb\0\""), r#""a\nb\0\"""#);
        assert_eq!(quoted(&"x".repeat(1_000_000)), format!("\"{}…\"", "x".repeat(64)));
    }
}
