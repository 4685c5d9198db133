//! What a test lets go wrong on purpose: rules that match requests and say how those are treated instead.

use std::time::Duration;

/// What happens to a request instead of its answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// It is answered, after a while.
    Delay(Duration),
    /// 429, as an overloaded server says it: plain text with `Retry-After` in seconds.
    TooManyRequests(u32),
    /// A `Status` of this code, its reason the one that goes with it.
    Code(u16),
    /// 410 Expired; to a watch, by an event inside a 200.
    Gone,
    /// The connection is closed without an answer. The request has no effect.
    Drop,
    /// The request takes effect, and the connection is closed without an answer.
    DropAfter,
    /// The request takes effect; half of the answer comes, then the connection is closed.
    Half,
    /// Nothing comes, and the connection stays. The request has no effect.
    Silence,
}

/// Which requests a fault befalls.
#[derive(Debug, Clone)]
pub struct Rule {
    method: Option<String>,
    path: String,
    left: Option<usize>,
    fault: Fault,
}

impl Rule {
    /// Befalls every request until it is cleared.
    #[must_use]
    pub fn always(fault: Fault) -> Self {
        Self { method: None, path: String::new(), left: None, fault }
    }

    /// Befalls the next request.
    #[must_use]
    pub fn once(fault: Fault) -> Self {
        Self::always(fault).times(1)
    }

    /// Befalls this many requests.
    #[must_use]
    pub fn times(mut self, count: usize) -> Self {
        self.left = Some(count);
        self
    }

    /// Only requests of this method.
    #[must_use]
    pub fn method(mut self, method: &str) -> Self {
        self.method = Some(method.to_owned());
        self
    }

    /// Only requests whose path and query, as sent, contain this.
    #[must_use]
    pub fn path(mut self, part: &str) -> Self {
        part.clone_into(&mut self.path);
        self
    }

    fn matches(&self, method: &str, path: &str) -> bool {
        self.left != Some(0)
            && self.method.as_deref().is_none_or(|wanted| wanted == method)
            && path.contains(&self.path)
    }
}

/// The rules in force.
#[derive(Debug, Default)]
pub struct Rules(Vec<Rule>);

impl Rules {
    /// Adds a rule; earlier ones come first.
    pub fn add(&mut self, rule: Rule) {
        self.0.push(rule);
    }

    /// Forgets all rules.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// What befalls a request; counts it.
    pub fn take(&mut self, method: &str, path: &str) -> Option<Fault> {
        let rule = self.0.iter_mut().find(|rule| rule.matches(method, path))?;
        if let Some(left) = &mut rule.left {
            *left -= 1;
        }
        Some(rule.fault.clone())
    }
}
