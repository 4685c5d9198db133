//! Where things are in a manifest: which line a document begins on, an object's field stands on, and a key of the JSON inside a
//! definition. Found by looking for them in the text, for the readers of YAML and JSON keep no places.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

/// The part of a file that an object is in.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) file: String,
    text: Arc<str>,
    /// Where in the text the object begins, and the document that it is in ends.
    begin: usize,
    end: usize,
}

/// A document, or the line and the problem.
type Document = Result<(Source, Value), (usize, String)>;

/// The documents of a file.
///
/// # Errors
/// The file cannot be read.
pub(super) fn documents(file: &Path) -> Result<Vec<Document>, String> {
    let text: Arc<str> = std::fs::read_to_string(file).map_err(|e| e.to_string())?.into();
    let source = Source { file: file.display().to_string(), begin: 0, end: text.len(), text };
    Ok(if file.extension().is_some_and(|e| e == "json") { source.json() } else { source.yaml() })
}

impl Source {
    fn json(&self) -> Vec<Document> {
        let mut stream = serde_json::Deserializer::from_str(&self.text).into_iter::<Value>();
        let mut documents = Vec::new();
        loop {
            let begin = stream.byte_offset();
            match stream.next() {
                None => return documents,
                Some(Ok(value)) => {
                    documents.push(Ok((Self { begin, end: stream.byte_offset(), ..self.clone() }, value)));
                }
                Some(Err(e)) => {
                    documents.push(Err((e.line(), e.to_string())));
                    return documents;
                }
            }
        }
    }

    /// `---` at the beginning of a line begins a document wherever it stands (YAML 1.2 §9.1.2).
    fn yaml(&self) -> Vec<Document> {
        let mut begins = vec![0];
        let mut at = 0;
        for line in self.text.split_inclusive('\n') {
            if line.trim_end() == "---" || line.starts_with("--- ") {
                begins.push(at);
            }
            at += line.len();
        }
        begins.push(self.text.len());
        begins.windows(2).flat_map(|window| self.yaml_document(window[0], window[1])).collect()
    }

    fn yaml_document(&self, begin: usize, end: usize) -> Vec<Document> {
        let part = Self { begin, end, ..self.clone() };
        match serde_saphyr::from_multiple::<Value>(&self.text[begin..end]) {
            Ok(values) => values.into_iter().filter(|v| !v.is_null()).map(|value| Ok((part.clone(), value))).collect(),
            Err(error) => {
                let inside = error.location().map_or(0, |location| usize::try_from(location.line()).unwrap_or(0));
                let problem = error.to_string().lines().next().unwrap_or_default().to_owned();
                vec![Err((self.line_at(begin) + inside.saturating_sub(1), problem))]
            }
        }
    }

    /// The places of a list's items, of which it has so many: in YAML each begins with a dash at the items' indentation. Where
    /// they cannot be told apart, each has the whole list's.
    pub(super) fn items(&self, count: usize) -> Vec<Self> {
        let begins = self.key_after(self.begin, "items").map(|at| self.dashes_after(at)).unwrap_or_default();
        if begins.len() != count {
            return vec![self.clone(); count];
        }
        let ends = begins.iter().skip(1).copied().chain(Some(self.end));
        begins.iter().zip(ends).map(|(begin, end)| Self { begin: *begin, end, ..self.clone() }).collect()
    }

    /// The lines from a place on that begin with a dash where the first of them does.
    fn dashes_after(&self, at: usize) -> Vec<usize> {
        let mut begins: Vec<usize> = Vec::new();
        let (mut begin, mut indentation) = (at, None);
        for line in self.text[at..self.end].split_inclusive('\n') {
            let inner = line.trim_start_matches(' ');
            let indented = line.len() - inner.len();
            if inner.starts_with("- ") && *indentation.get_or_insert(indented) == indented {
                begins.push(begin);
            }
            begin += line.len();
        }
        begins
    }

    /// The line, counted from 1, of a field (`spec.config`, `metadata.annotations[…]`) or, inside of what it holds, of a key.
    /// What is not found is where that is which would hold it.
    pub(super) fn line(&self, field: &str, key: &str) -> usize {
        let mut at = self.begin;
        for name in names(field) {
            let Some(found) = self.key_after(at, name) else { break };
            at = found;
        }
        if !key.is_empty()
            && let Some(begin) = self.text[at..self.end].find('{')
        {
            let json = &self.text[at + begin..self.end];
            at += place(json, key).map_or(0, |found| begin + found);
        }
        self.line_at(self.first_of_line(at))
    }

    /// A document may begin with blank lines and comments.
    fn first_of_line(&self, at: usize) -> usize {
        let mut begin = at;
        for line in self.text[at..self.end].split_inclusive('\n') {
            let is_blank = matches!(line.trim(), "" | "---") || line.trim_start().starts_with('#');
            if !is_blank {
                return begin;
            }
            begin += line.len();
        }
        at
    }

    fn key_after(&self, at: usize, name: &str) -> Option<usize> {
        let part = &self.text[at..self.end];
        let is_key = |found: &usize| {
            let before = part[..*found].chars().next_back().is_none_or(|c| c.is_whitespace() || "{,\"'-".contains(c));
            let after = part[found + name.len()..].trim_start_matches(['"', '\'']).trim_start();
            before && after.starts_with(':')
        };
        part.match_indices(name).map(|(found, _)| found).find(is_key).map(|found| at + found)
    }

    fn line_at(&self, at: usize) -> usize {
        self.text[..at].matches('\n').count() + 1
    }
}

/// `metadata.annotations[a.b/c]` as `metadata`, `annotations`, `a.b/c`.
fn names(field: &str) -> Vec<&str> {
    let (path, inside) = field.split_once('[').unwrap_or((field, ""));
    path.split('.').chain(Some(inside.trim_end_matches(']'))).filter(|name| !name.is_empty()).collect()
}

/// A step into JSON.
#[derive(Debug, PartialEq, Eq)]
enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

/// Where in JSON the key at a path stands. Errors leave the plugin out of the path where a list holds a single one.
fn place(json: &str, path: &str) -> Option<usize> {
    let scan = || Scan { bytes: json.as_bytes(), at: 0 };
    let steps = steps(path);
    scan().find(&steps).or_else(|| {
        let plugin = [Step::Key("plugins"), Step::Index(0)];
        let around = scan().find(&plugin)?;
        let inside: Vec<Step<'_>> = plugin.into_iter().chain(steps).collect();
        scan().find(&inside).filter(|found| *found != around)
    })
}

fn steps(path: &str) -> Vec<Step<'_>> {
    let piece = |piece| {
        let (key, indices): (&str, &str) = Option::unwrap_or(str::split_once(piece, '['), (piece, ""));
        let indices = indices.split(['[', ']']).filter_map(|n| n.parse().ok()).map(Step::Index);
        Some(Step::Key(key)).into_iter().chain(indices)
    };
    path.split('.').flat_map(piece).collect()
}

/// JSON text, and how far it was read. Only places matter: values are passed over.
struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scan<'a> {
    /// The place of the last key on the way that is there; `None` when not even the first is.
    fn find(&mut self, steps: &[Step<'_>]) -> Option<usize> {
        let (step, rest) = steps.split_first()?;
        self.space();
        let (open, close) = if matches!(step, Step::Key(_)) { (b'{', b'}') } else { (b'[', b']') };
        self.take(open)?;
        for position in 0.. {
            self.space();
            if self.bytes.get(self.at) == Some(&close) {
                return None;
            }
            let begin = self.at;
            let is_it = match step {
                Step::Key(wanted) => {
                    let key = self.string()?;
                    self.space();
                    self.take(b':')?;
                    key.eq_ignore_ascii_case(wanted.as_bytes())
                }
                Step::Index(wanted) => position == *wanted,
            };
            if is_it {
                return self.find(rest).or(Some(begin));
            }
            self.value()?;
            self.space();
            self.take(b',')?;
        }
        None
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        (self.bytes.get(self.at) == Some(&byte)).then(|| self.at += 1)
    }

    fn space(&mut self) {
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        self.take(b'"')?;
        let begin = self.at;
        loop {
            match self.bytes.get(self.at)? {
                b'"' => break,
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
        }
        self.at += 1;
        self.bytes.get(begin..self.at - 1)
    }

    fn value(&mut self) -> Option<()> {
        self.space();
        let mut depth = 0_usize;
        loop {
            match self.bytes.get(self.at)? {
                b'"' => drop(self.string()?),
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' | b',' if depth == 0 => return Some(()),
                b'}' | b']' => {
                    depth -= 1;
                    self.at += 1;
                }
                _ => self.at += 1,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str) -> Vec<Document> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(name);
        std::fs::write(&file, text).unwrap();
        documents(&file).unwrap()
    }

    const YAML: &str = r#"# a comment

apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata:
  name: first
  annotations:
    a.b/c: "x"
spec:
  config: |
    {
      "name": "config",
      "plugins": [
        { "type": "bridge", "vlan": 5 },
        {
          "type": "macvlan",
          "ipam": { "type": "host-local",
            "ranges": [[{"subnet": "10.0.0.0/24"},
              {"subnet": "10.1.0.0/24",
               "rangeStart": "x"}]] }
        }
      ]
    }
---
# another
kind: Pod
metadata: {name: second}
---
kind: List
items:
- {kind: Pod, metadata: {name: third}}
- kind: Pod
  metadata:
    name: fourth
    annotations: {a: b}
"#;

    #[test]
    fn fields_and_keys_are_found_by_their_line() {
        let found: Vec<Source> = read("a.yaml", YAML).into_iter().map(|d| d.unwrap().0).collect();
        let rows = [
            (0, "metadata.name", "", 6),
            (0, "metadata.annotations[a.b/c]", "", 8),
            (0, "spec.config", "", 10),
            (0, "spec.config", "name", 12),
            (0, "spec.config", "plugins[0].vlan", 14),
            (0, "spec.config", "plugins[1].type", 16),
            (0, "spec.config", "PLUGINS[1].IPAM.ranges[0][0].subnet", 18),
            (0, "spec.config", "plugins[1].ipam.ranges[0][1].rangeStart", 20),
            (0, "spec.config", "plugins[1].ipam.missing", 17),
            (0, "spec.config", "missing", 10),
            (0, "", "", 3),
            (1, "metadata.name", "", 27),
            // What is not there is where its document begins.
            (1, "spec.config", "", 26),
        ];
        for (document, field, key, line) in rows {
            assert_eq!(found[document].line(field, key), line, "{document} {field} {key}");
        }
        let items = found[2].items(2);
        assert_eq!(items[0].line("metadata.name", ""), 31);
        assert_eq!(items[1].line("metadata.name", ""), 34);
        assert_eq!(items[1].line("metadata.annotations[a]", ""), 35);
        assert_eq!(found[2].items(3)[1].line("", ""), 29, "the list's own, where items cannot be told apart");
    }

    #[test]
    fn a_single_plugin_of_a_list_needs_no_position() {
        let json = r#"{"plugins": [{"type": "a",
            "mtu": 3}]}"#;
        assert_eq!(json[..place(json, "mtu").unwrap()].matches('\n').count(), 1);
        assert_eq!(place(r#"{"type": "a"}"#, "mtu"), None);
        assert_eq!(place(r#"{"a": "\"}{", "mtu": 3}"#, "mtu"), Some(14));
    }

    #[test]
    fn what_is_no_manifest_is_told_with_its_line() {
        let rows = [
            ("a.yaml", "kind: Pod\n---\nkind: [\n", 3),
            ("a.yaml", "a: 1\na: {\n", 2),
            ("a.json", "{\"kind\": \"Pod\"}\n{\"kind\": }\n", 2),
        ];
        for (name, text, line) in rows {
            let last = read(name, text).pop().unwrap();
            let (found, problem) = last.err().unwrap();
            assert!(found.abs_diff(line) <= 1 && !problem.is_empty(), "{text}: {found} {problem}");
        }
    }
}
