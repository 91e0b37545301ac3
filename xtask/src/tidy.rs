//! `cargo xtask tidy`: the walls between crates, and the habits a program can check.
//!
//! Fails on: a crate edge that is not in `ALLOWED`, runtime libraries in a pure crate, a source
//! file without a module comment, a dead relative link in a document. Prints, failing nothing:
//! the longest files and functions.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

use crate::process::{cargo, root};

/// Allowed normal (not dev) edges between workspace crates. Anything else fails.
const ALLOWED: &[(&str, &[&str])] = &[
    ("weft-model", &["weft-cel"]),
    ("weft-http", &[]),
    ("weft-telemetry", &[]),
    ("weft-cel", &[]),
    ("weft-xds", &[]),
    ("weft-translate", &["weft-model", "weft-xds"]),
    ("weft-traffic", &["weft-cel", "weft-http", "weft-telemetry", "weft-xds"]),
    ("weft-capture", &["weft-model"]),
    ("weft-proxy", &["weft-http", "weft-traffic", "weft-telemetry", "weft-xds"]),
    (
        "weft-control",
        &["weft-model", "weft-translate", "weft-xds", "weft-telemetry", "weft-capture"],
    ),
    (
        "weft",
        &[
            "weft-model",
            "weft-translate",
            "weft-xds",
            "weft-traffic",
            "weft-telemetry",
            "weft-capture",
            "weft-http",
            "weft-proxy",
            "weft-control",
        ],
    ),
    ("weft-testkit", &["weft-model", "weft-http", "weft-xds"]),
    ("xtask", &[]),
];

/// Crates that hold no I/O: none of these may stand among their normal dependencies.
const PURE: &[&str] = &[
    "weft-model",
    "weft-http",
    "weft-cel",
    "weft-translate",
    "weft-traffic",
    "weft-telemetry",
    "weft-capture",
];
const IMPURE: &[&str] = &["tokio", "mio", "socket2", "hyper", "h2", "tonic", "rustls", "rand"];

const LISTED: usize = 10;

pub fn run() -> anyhow::Result<()> {
    let mut faults = Vec::new();
    check_edges(&mut faults)?;
    let sources = files(&root(), "rs")?;
    check_module_comments(&sources, &mut faults)?;
    check_links(&mut faults)?;
    print_longest(&sources)?;
    if faults.is_empty() {
        println!("tidy: {} source files, no fault", sources.len());
        return Ok(());
    }
    for fault in &faults {
        eprintln!("tidy: {fault}");
    }
    bail!("{} faults", faults.len())
}

fn check_edges(faults: &mut Vec<String>) -> anyhow::Result<()> {
    let output = cargo()
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .output()
        .context("cannot run cargo metadata")?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let members: Vec<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    for package in packages {
        let name = package["name"].as_str().context("a package without a name")?;
        let Some((_, allowed)) = ALLOWED.iter().find(|(member, _)| *member == name) else {
            faults.push(format!("crate {name} is not in the table of allowed edges"));
            continue;
        };
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        for dependency in dependencies.filter(|d| d["kind"].is_null()) {
            let on = dependency["name"].as_str().unwrap_or_default();
            if members.contains(&on) && !allowed.contains(&on) {
                faults.push(format!("{name} may not depend on {on} (ARCHITECTURE.md, walls)"));
            }
            if PURE.contains(&name) && IMPURE.contains(&on) {
                faults.push(format!("{name} is pure and may not depend on {on}"));
            }
        }
    }
    Ok(())
}

fn check_module_comments(sources: &[PathBuf], faults: &mut Vec<String>) -> anyhow::Result<()> {
    // A module's unit tests need no introduction.
    let is_tests = |path: &Path| shown(path).contains("/src/") && shown(path).contains("/tests");
    for path in sources.iter().filter(|path| !is_tests(path)) {
        let text = fs::read_to_string(path)?;
        if !text.starts_with("//!") && !text.starts_with("#![no_main]") {
            faults.push(format!("{} does not open with a module comment", shown(path)));
        }
    }
    Ok(())
}

/// Relative links of Markdown documents must lead somewhere.
fn check_links(faults: &mut Vec<String>) -> anyhow::Result<()> {
    for path in files(&root(), "md")? {
        let text = fs::read_to_string(&path)?;
        for target in link_targets(&text) {
            let file = target.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") || file.starts_with("mailto:") {
                continue;
            }
            if !path.parent().is_some_and(|folder| folder.join(file).exists()) {
                faults.push(format!("{} links to {target}, which is not there", shown(&path)));
            }
        }
    }
    Ok(())
}

fn link_targets(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices("](").filter_map(|(at, _)| text[at + 2..].split(')').next())
}

fn print_longest(sources: &[PathBuf]) -> anyhow::Result<()> {
    let mut longest_files = Vec::new();
    let mut longest_functions = Vec::new();
    for path in sources {
        let text = fs::read_to_string(path)?;
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        longest_files.push((code.lines().count(), shown(path)));
        longest_functions.extend(
            functions(code).map(|(name, lines)| (lines, format!("{} {name}", shown(path)))),
        );
    }
    print_top("longest files (lines, tests left out)", longest_files);
    print_top("longest functions (lines)", longest_functions);
    Ok(())
}

fn print_top(title: &str, mut rows: Vec<(usize, String)>) {
    rows.sort_by(|a, b| b.cmp(a));
    println!("{title}:");
    for (lines, what) in rows.iter().take(LISTED) {
        println!("  {lines:5}  {what}");
    }
}

/// Functions of rustfmt-formatted code: from the `fn` line to the brace of the same indent.
fn functions(code: &str) -> impl Iterator<Item = (&str, usize)> {
    let lines: Vec<&str> = code.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let Some(name) = function_name(line.trim_start()) else { continue };
        let end = lines[at..].iter().position(|l| {
            l.len() > indent && l[..indent].trim().is_empty() && l[indent..].starts_with('}')
        });
        if let Some(end) = end {
            found.push((name, end + 1));
        }
    }
    found.into_iter()
}

fn function_name(line: &str) -> Option<&str> {
    let rest = match line.split_once("fn ") {
        Some((before, rest))
            if before.split_whitespace().all(|word| {
                word.starts_with("pub") || matches!(word, "async" | "const" | "unsafe" | "extern")
            }) =>
        {
            rest
        }
        _ => return None,
    };
    rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().filter(|name| !name.is_empty())
}

fn files(folder: &Path, extension: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() {
                if !name.starts_with('.') && name != "target" && name != "node_modules" {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_measured_to_their_closing_brace() {
        let code = "impl A {\n    pub fn a(&self) {\n        b();\n    }\n}\nfn c() {\n}\n";
        let found: Vec<_> = functions(code).collect();
        assert_eq!(found, [("a", 3), ("c", 2)]);
    }

    #[test]
    fn links_are_found() {
        let found: Vec<_> = link_targets("see [a](docs/a.md#x) and [b](b.md)").collect();
        assert_eq!(found, ["docs/a.md#x", "b.md"]);
    }
}
