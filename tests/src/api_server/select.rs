//! Label and field selectors: which objects of a list or watch a client wants to see.

use serde_json::Value;

use super::resources::Resource;

/// A selection of objects.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    namespace: Option<String>,
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

#[derive(Debug, Clone)]
struct Requirement {
    /// A label, or a path into the object.
    key: String,
    test: Test,
}

#[derive(Debug, Clone)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Missing,
}

impl Selection {
    /// Reads both selectors. The error is the sentence of a 400.
    pub fn parse(resource: &Resource, namespace: Option<&str>, labels: &str, fields: &str) -> Result<Self, String> {
        let labels = split(labels).map(label).collect::<Result<Vec<_>, _>>();
        let labels = labels.map_err(|part| format!("unable to parse requirement: {part}"))?;
        let mut parsed = Vec::new();
        for part in split(fields) {
            let requirement = field(part).ok_or_else(|| {
                format!("invalid field selector: {fields:?}: can't understand '{part}'; expected ==, != or =")
            })?;
            if !supported(resource, &requirement.key) {
                return Err(format!(
                    "Unable to find {:?} that match label selector \"\", field selector {fields:?}: field label not supported: {}",
                    format!("{}, Resource={}", resource.api_version(), resource.plural),
                    requirement.key
                ));
            }
            parsed.push(requirement);
        }
        Ok(Self { namespace: namespace.map(str::to_owned), labels, fields: parsed })
    }

    /// Whether it selects by more than the namespace.
    pub fn is_by_content(&self) -> bool {
        !self.labels.is_empty() || !self.fields.is_empty()
    }

    /// Whether an object belongs to it.
    pub fn has(&self, object: &Value) -> bool {
        let metadata = &object["metadata"];
        self.namespace.as_deref().is_none_or(|wanted| metadata["namespace"] == wanted)
            && self.labels.iter().all(|label| label.test.holds(metadata["labels"].get(&label.key).map(text)))
            && self.fields.iter().all(|field| field.test.holds(Some(at(object, &field.key))))
    }
}

impl Test {
    fn holds(&self, value: Option<String>) -> bool {
        match (self, value) {
            (Self::In(wanted), Some(value)) => wanted.contains(&value),
            (Self::NotIn(unwanted), Some(value)) => !unwanted.contains(&value),
            (Self::In(_), None) | (Self::Missing, Some(_)) | (Self::Exists, None) => false,
            (Self::NotIn(_), None) | (Self::Missing, None) | (Self::Exists, Some(_)) => true,
        }
    }
}

/// The fields that a real server can select by.
fn supported(resource: &Resource, key: &str) -> bool {
    let own: &[&str] = match resource.kind.as_str() {
        "Pod" => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        "Event" => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        "Namespace" => &["status.phase"],
        "Node" => &["spec.unschedulable"],
        "Secret" => &["type"],
        _ => &[],
    };
    let everywhere = key == "metadata.name" || key == "metadata.namespace" && resource.namespaced;
    everywhere || own.contains(&key)
}

fn at(object: &Value, path: &str) -> String {
    if path == "source" {
        return text(&object["source"]["component"]);
    }
    let value = path.split('.').fold(object, |value, key| &value[key]);
    if value.is_null() && matches!(path, "spec.hostNetwork" | "spec.unschedulable") {
        return "false".to_owned();
    }
    text(value)
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn field(part: &str) -> Option<Requirement> {
    let (key, value, equal) = match part.split_once("!=") {
        Some((key, value)) => (key, value, false),
        None => {
            let (key, value) = part.split_once("==").or_else(|| part.split_once('='))?;
            (key, value, true)
        }
    };
    let value = vec![value.to_owned()];
    Some(Requirement { key: key.to_owned(), test: if equal { Test::In(value) } else { Test::NotIn(value) } })
}

fn label(part: &str) -> Result<Requirement, String> {
    if let Some(requirement) = field(part) {
        return Ok(Requirement { key: requirement.key.trim().to_owned(), test: trimmed(requirement.test) });
    }
    if let Some(key) = part.strip_prefix('!') {
        return Ok(Requirement { key: key.trim().to_owned(), test: Test::Missing });
    }
    let Some((key, values)) = part.strip_suffix(')').and_then(|part| part.split_once('(')) else {
        let single_word = !part.contains(' ');
        return if single_word {
            Ok(Requirement { key: part.to_owned(), test: Test::Exists })
        } else {
            Err(part.to_owned())
        };
    };
    let values = values.split(',').map(|value| value.trim().to_owned()).collect();
    match key.split_whitespace().collect::<Vec<_>>().as_slice() {
        [key, "in"] => Ok(Requirement { key: (*key).to_owned(), test: Test::In(values) }),
        [key, "notin"] => Ok(Requirement { key: (*key).to_owned(), test: Test::NotIn(values) }),
        _ => Err(part.to_owned()),
    }
}

fn trimmed(test: Test) -> Test {
    let trim = |values: Vec<String>| values.into_iter().map(|value| value.trim().to_owned()).collect();
    match test {
        Test::In(values) => Test::In(trim(values)),
        Test::NotIn(values) => Test::NotIn(trim(values)),
        other => other,
    }
}

/// Splits at the commas outside of parentheses.
fn split(selector: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    let parts = selector.split(move |c| {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    });
    parts.map(str::trim).filter(|part| !part.is_empty())
}
