//! Learns which part of a service's paths varies: where one place holds more different words than an
//! interface has, they are values.
//!
//! Proxies take out what looks like an id by itself (`weft_telemetry::load::template`); names do not.
//! Only paths that were answered well are learnt from: a scan of random paths teaches nothing.

use std::collections::BTreeMap;

/// Different words at the first place.
const FIRST_MAX: usize = 64;
/// At every later one.
const WORDS_MAX: usize = 24;
/// Templates of one service.
pub(super) const TEMPLATES_MAX: usize = 200;
/// What found no room.
pub(super) const OTHER: &str = "other";
const VALUE: &str = "{id}";

/// The paths of one service.
#[derive(Debug, Default)]
pub(super) struct Templates {
    root: Node,
    leaves: usize,
}

#[derive(Debug, Default)]
struct Node {
    words: BTreeMap<Box<str>, Node>,
    /// Any word stands here.
    value: Option<Box<Node>>,
    is_leaf: bool,
}

/// What came of a path.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Learnt {
    pub(super) template: String,
    /// Templates known before may have become one.
    pub(super) changed: bool,
}

impl Templates {
    /// The template of a path, remembered.
    pub(super) fn learn(&mut self, path: &str) -> Learnt {
        let known = self.find(path);
        if known != OTHER {
            return Learnt { template: known, changed: false };
        }
        if self.leaves >= TEMPLATES_MAX {
            return Learnt { template: OTHER.to_owned(), changed: false };
        }
        let mut node = &mut self.root;
        let mut changed = false;
        for (place, word) in words(path).enumerate() {
            let max = if place == 0 { FIRST_MAX } else { WORDS_MAX };
            if node.value.is_none() && !node.words.contains_key(word) && node.words.len() >= max {
                node.collapse();
                changed = true;
            }
            let stands = word == VALUE || node.value.is_some() && !node.words.contains_key(word);
            node = match stands {
                true => node.value.get_or_insert_default(),
                false => node.words.entry(word.into()).or_default(),
            };
        }
        node.is_leaf = true;
        self.leaves = self.root.leaves();
        Learnt { template: self.find(path), changed }
    }

    /// A path that is its own template, such as a gRPC method, while there is room.
    pub(super) fn exact(&mut self, path: &str) -> String {
        if self.leaves >= TEMPLATES_MAX && self.find(path) == OTHER {
            return OTHER.to_owned();
        }
        let mut node = &mut self.root;
        for word in words(path) {
            node = node.words.entry(word.into()).or_default();
        }
        self.leaves += usize::from(!std::mem::replace(&mut node.is_leaf, true));
        path.to_owned()
    }

    /// The template of a path as far as it is known, else [`OTHER`].
    pub(super) fn find(&self, path: &str) -> String {
        let mut node = &self.root;
        let mut template = String::with_capacity(path.len());
        for word in words(path) {
            template.push('/');
            node = match (node.words.get(word), &node.value) {
                (Some(next), _) => {
                    template.push_str(word);
                    next
                }
                (None, Some(value)) => {
                    template.push_str(VALUE);
                    value
                }
                (None, None) => return OTHER.to_owned(),
            };
        }
        if node.is_leaf { template } else { OTHER.to_owned() }
    }
}

impl Node {
    /// All words become one value, with all that comes after any of them.
    fn collapse(&mut self) {
        let mut value = self.value.take().map_or_else(Node::default, |value| *value);
        for (_, node) in std::mem::take(&mut self.words) {
            value.merge(node);
        }
        self.value = Some(Box::new(value));
    }

    fn merge(&mut self, other: Node) {
        self.is_leaf |= other.is_leaf;
        for (word, node) in other.words {
            match (&mut self.value, self.words.len() >= WORDS_MAX) {
                (None, true) if !self.words.contains_key(&word) => {
                    self.collapse();
                    if let Some(value) = &mut self.value {
                        value.merge(node);
                    }
                }
                (Some(value), _) if !self.words.contains_key(&word) => value.merge(node),
                _ => self.words.entry(word).or_default().merge(node),
            }
        }
        if let Some(theirs) = other.value {
            self.value.get_or_insert_default().merge(*theirs);
        }
    }

    fn leaves(&self) -> usize {
        let below: usize = self.words.values().map(Node::leaves).sum();
        below + self.value.as_ref().map_or(0, |value| value.leaves()) + usize::from(self.is_leaf)
    }
}

fn words(path: &str) -> impl Iterator<Item = &str> {
    path.strip_prefix('/').unwrap_or(path).split('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: usize) -> String {
        number.to_string().bytes().map(|byte| char::from(byte - b'0' + b'a')).collect()
    }

    #[test]
    fn names_that_vary_become_one() {
        let mut templates = Templates::default();
        assert_eq!(templates.learn("/").template, "/");
        assert_eq!(templates.learn("/users/{id}").template, "/users/{id}");
        assert_eq!(templates.learn("/login").template, "/login");
        for number in 0..100 {
            templates.learn(&format!("/pages/{}/edit", name(number)));
        }
        assert_eq!(templates.learn("/pages/home/edit").template, "/pages/{id}/edit");
        assert_eq!(templates.find("/pages/a/edit"), "/pages/{id}/edit");
        assert_eq!(templates.find("/login"), "/login");
        assert_eq!(templates.find("/users/7"), "/users/{id}");
        assert_eq!(templates.find("/wp-admin"), OTHER);
        assert!(templates.leaves < 10, "{}", templates.leaves);
    }

    #[test]
    fn a_service_has_at_most_so_many() {
        let mut templates = Templates::default();
        let mut all = std::collections::BTreeSet::new();
        for first in 0..80 {
            for second in 0..80 {
                for third in 0..3 {
                    let path = format!("/{}/{}/{}", name(first), name(second), name(third));
                    templates.learn(&path);
                }
            }
        }
        for first in 0..80 {
            for second in 0..80 {
                all.insert(templates.find(&format!("/{}/{}/a", name(first), name(second))));
            }
        }
        assert!(
            all.len() <= TEMPLATES_MAX + 1 && templates.leaves <= TEMPLATES_MAX,
            "{}",
            all.len()
        );
    }

    #[test]
    fn what_was_learnt_stays_found() {
        let mut templates = Templates::default();
        let mut seen = Vec::new();
        for number in 0..500 {
            let path = format!("/{}/x/{}", name(number % 90), name(number));
            templates.learn(&path);
            seen.push(path);
        }
        for path in &seen {
            let template = templates.find(path);
            assert!(template == OTHER || template.split('/').count() == 4, "{path}: {template}");
        }
    }
}
