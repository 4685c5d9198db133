//! Selecting objects by their labels, as Kubernetes does it (`metav1.LabelSelector`), with every operator spelled out so
//! that an unknown one is refused instead of matching nothing.

use std::collections::{BTreeMap, BTreeSet};

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which objects are selected: those that fulfil all of it. An empty one selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelSelector {
    /// Labels and the values they have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// What else is asked of labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub match_expressions: Vec<Requirement>,
}

/// What is asked of one label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(test, x_kube(cel))]
#[x_kube(validation = Rule::new("(self.operator in ['In', 'NotIn']) == (has(self.values) && self.values.size() > 0)")
    .message("In and NotIn need values, Exists and DoesNotExist take none"))]
pub struct Requirement {
    /// The label's name.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,
    /// What is asked.
    pub operator: Operator,
    /// The values that are meant.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 63)))]
    pub values: BTreeSet<String>,
}

/// How a label is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Operator {
    /// It has one of the values.
    In,
    /// It has none of the values; an object without the label is selected.
    NotIn,
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

impl LabelSelector {
    /// Whether it selects objects whatever their labels.
    #[must_use]
    pub fn selects_all(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }

    /// Whether it selects an object of these labels.
    #[must_use]
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|requirement| requirement.is_met_by(labels))
    }
}

impl Requirement {
    /// Whether it has the values that its operator needs, and no others.
    pub(super) fn is_whole(&self) -> bool {
        matches!(self.operator, Operator::In | Operator::NotIn) != self.values.is_empty()
    }

    fn is_met_by(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            Operator::In => value.is_some_and(|value| self.values.contains(value)),
            Operator::NotIn => value.is_none_or(|value| !self.values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_are_compared_as_kubernetes_does() {
        let blue = BTreeMap::from([("tenant".to_owned(), "blue".to_owned()), ("tier".to_owned(), String::new())]);
        let expression = |key: &str, operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        let rows = [
            (json!({}), true),
            (json!({"matchLabels": {"tenant": "blue"}}), true),
            (json!({"matchLabels": {"tenant": "blue", "tier": ""}}), true),
            (json!({"matchLabels": {"tenant": "red"}}), false),
            (json!({"matchLabels": {"tenant": "blue", "other": ""}}), false),
            (expression("tenant", "In", &["red", "blue"]), true),
            (expression("tenant", "In", &["red"]), false),
            (expression("other", "In", &["red"]), false),
            (expression("tenant", "NotIn", &["blue"]), false),
            (expression("other", "NotIn", &["blue"]), true),
            (expression("tier", "Exists", &[]), true),
            (expression("other", "Exists", &[]), false),
            (expression("tier", "DoesNotExist", &[]), false),
            (expression("other", "DoesNotExist", &[]), true),
        ];
        for (selector, selected) in rows {
            let parsed: LabelSelector = serde_json::from_value(selector.clone()).unwrap();
            assert_eq!(parsed.selects(&blue), selected, "{selector}");
        }
        let unknown = serde_json::from_value::<LabelSelector>(expression("tenant", "Like", &["b*"]));
        assert!(unknown.unwrap_err().to_string().contains("unknown variant `Like`"));
    }
}
