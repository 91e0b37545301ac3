//! Parsing never panics, whatever bytes a file holds: real resources are mutated at random.

use proptest::prelude::*;
use weft_model::{analyze, parse_yaml, render_human, render_json};

/// One of each kind, with most fields in use.
const SEED: &str = concat!(
    include_str!("fixtures/all-kinds.yaml"),
    "\n---\n",
    include_str!("fixtures/gateway-api.yaml")
);

/// Text that means something to the parser.
const TOKENS: [&str; 24] = [
    "---\n",
    "...\n",
    ": ",
    "- ",
    "{",
    "}",
    "[",
    "]",
    "&a ",
    "*a",
    "<<: ",
    "null",
    "-1",
    "99999999999999999999",
    "1e400",
    "\"",
    "'",
    "|\n",
    "\t",
    "é",
    "\0",
    "true",
    "!!binary ",
    "0x7f",
];

#[derive(Clone, Debug)]
enum Edit {
    Insert(usize, usize),
    Delete(usize, usize),
    Copy(usize, usize, usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = 0..SEED.len();
    prop_oneof![
        (at.clone(), 0..TOKENS.len()).prop_map(|(at, token)| Edit::Insert(at, token)),
        (at.clone(), 1..60usize).prop_map(|(at, length)| Edit::Delete(at, length)),
        (at.clone(), 1..200usize, at).prop_map(|(from, length, to)| Edit::Copy(from, length, to)),
    ]
}

/// The nearest place at or below `at` where the text can be cut.
fn cut(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

fn apply(text: &mut String, edit: &Edit) {
    match *edit {
        Edit::Insert(at, token) => text.insert_str(cut(text, at), TOKENS[token]),
        Edit::Delete(at, length) => {
            let (from, to) = (cut(text, at), cut(text, at + length));
            text.replace_range(from..to, "");
        }
        Edit::Copy(from, length, to) => {
            let piece = text[cut(text, from)..cut(text, from + length)].to_string();
            text.insert_str(cut(text, to), &piece);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_resources_never_panic(edits in prop::collection::vec(edit(), 1..8)) {
        let mut text = SEED.to_string();
        for edit in &edits {
            apply(&mut text, edit);
        }
        let diagnostics = analyze(&[("f.yaml".to_string(), text)]);
        render_human(&diagnostics);
        render_json(&diagnostics);
    }

    #[test]
    fn random_text_never_panics(text in ".{0,400}") {
        analyze(&[("f.yaml".to_string(), text)]);
    }
}

#[test]
fn the_seed_itself_is_valid() {
    let (_, diagnostics) = parse_yaml("f.yaml", SEED);
    let errors: Vec<_> = diagnostics.iter().filter(|found| found.is_error()).collect();
    assert!(errors.is_empty(), "{errors:#?}");
}
