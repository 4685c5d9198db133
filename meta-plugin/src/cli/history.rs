//! `musubi status --history` for reading: the agent's last operations as a table. Asking the agent for them is
//! `status.rs`'s business.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::{short_id, table};
use crate::agent::history::{Entry, NetworkEntry, parse};

/// The table of what the agent answered to `GET /history`, its errors below it.
///
/// # Errors
/// It is no history.
pub fn render(history: &Value, now: Timestamp) -> anyhow::Result<String> {
    let entries = parse(history)?;
    if entries.is_empty() {
        return Ok("the agent has carried out no operation yet\n".to_owned());
    }
    let header = ["AGE", "VERB", "POD", "CONTAINER", "MS", "NETWORKS (MS)", "OUTCOME", "REQUEST"];
    let mut text = table(&header, entries.iter().map(|entry| cells(entry, now)));
    for entry in &entries {
        if let Some(error) = &entry.error {
            text.push_str(&format!("{}: {}\n", entry.request_id, one_line(&error.message)));
        }
    }
    Ok(text)
}

fn cells(entry: &Entry, now: Timestamp) -> Vec<String> {
    let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    let networks: Vec<String> = entry.networks.iter().map(network).collect();
    vec![
        super::status::age(Duration::try_from(now - entry.started).unwrap_or_default().as_secs()),
        entry.verb.clone(),
        or_dash(entry.pod.clone()),
        or_dash(short_id(&entry.container_id)),
        format!("{:.1}", entry.milliseconds),
        or_dash(networks.join(" ")),
        entry.error.as_ref().map_or_else(|| "ok".to_owned(), |error| format!("code {}", error.code)),
        or_dash(entry.request_id.clone()),
    ]
}

fn network(entry: &NetworkEntry) -> String {
    format!("{}={}({:.1})", entry.interface, entry.network, entry.milliseconds)
}

/// Part of a message may be a plugin's, and a terminal obeys more than letters.
fn one_line(message: &str) -> String {
    message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_operation_is_a_line_and_each_error_one_below() {
        let history = json!({"operations": [
            {"requestId": "r2", "verb": "ADD", "pod": "default/web", "containerId": "0123456789abcdef",
             "networks": [{"network": "kindnet", "interface": "eth0", "milliseconds": 2.04},
                          {"network": "default/blue", "interface": "net1", "milliseconds": 1.5}],
             "started": "2023-11-14T22:13:20Z", "milliseconds": 4.26},
            {"requestId": "r1", "verb": "GC", "started": "2023-11-14T22:03:20Z", "milliseconds": 90.0,
             "error": {"code": 100, "message": "it \u{1b}[31mfailed\nbadly"}},
        ]});
        let now = "2023-11-14T22:13:32Z".parse().unwrap();
        let text = render(&history, now).unwrap();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            lines[1],
            [
                "12s",
                "ADD",
                "default/web",
                "0123456789ab",
                "4.3",
                "eth0=kindnet(2.0)",
                "net1=default/blue(1.5)",
                "ok",
                "r2"
            ]
        );
        assert_eq!(lines[2], ["10m", "GC", "-", "-", "90.0", "-", "code", "100", "r1"]);
        assert_eq!(text.lines().last(), Some("r1: it  [31mfailed badly"));
        assert!(render(&json!({"operations": []}), now).unwrap().contains("no operation yet"));
        assert!(render(&json!([]), now).is_err());
    }
}
