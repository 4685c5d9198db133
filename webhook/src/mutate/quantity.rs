//! Quantities of Kubernetes, as far as devices are counted in them: whole numbers, with the suffixes that leave them whole.

use serde_json::Value;

/// Suffixes and what they stand for.
const SUFFIXES: [(&str, u64); 11] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("e3", 1_000),
    ("E3", 1_000),
    ("", 1),
];

/// The number that a quantity is, if it is a whole one.
pub fn whole(quantity: &Value) -> Option<u64> {
    let text = match quantity {
        Value::Number(number) => return number.as_u64(),
        Value::String(text) => text.strip_prefix('+').unwrap_or(text),
        _ => return None,
    };
    if let Some(thousandths) = text.strip_suffix('m') {
        let thousandths = digits(thousandths)?;
        return (thousandths % 1000 == 0).then_some(thousandths / 1000);
    }
    let (suffix, factor) = SUFFIXES.iter().find(|(suffix, _)| text.ends_with(suffix))?;
    digits(text.strip_suffix(suffix)?)?.checked_mul(*factor)
}

fn digits(text: &str) -> Option<u64> {
    // A fraction of nothing is a whole number, too.
    let text =
        text.split_once('.').map_or(text, |(whole, rest)| if rest.bytes().all(|b| b == b'0') { whole } else { "" });
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn whole_numbers_are_read_as_kubernetes_writes_them() {
        let rows = [
            (json!("2"), Some(2)),
            (json!(2), Some(2)),
            (json!("+2"), Some(2)),
            (json!("1k"), Some(1000)),
            (json!("1e3"), Some(1000)),
            (json!("1Ki"), Some(1024)),
            (json!("3000m"), Some(3)),
            (json!("2.0"), Some(2)),
            (json!("1500m"), None),
            (json!("1.5"), None),
            (json!("-1"), None),
            (json!(""), None),
            (json!("x"), None),
            (json!("99999999999999999999"), None),
            (json!("99999999999999Ti"), None),
            (json!([1]), None),
        ];
        for (quantity, number) in rows {
            assert_eq!(whole(&quantity), number, "{quantity}");
        }
    }
}
