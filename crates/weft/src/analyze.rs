//! `weft analyze`: the control plane's findings on files, without a control plane.

use crate::cli::{AnalyzeArgs, Output};
use anyhow::{Context as _, bail};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Directory levels below a named one.
const DEPTH_MAX: usize = 32;

/// Fails (exit code 1) when any finding is an error.
pub(crate) fn run(args: &AnalyzeArgs) -> anyhow::Result<ExitCode> {
    let files = read_all(&args.files)?;
    let (snapshot, mut findings) = weft_model::load(&files);
    findings.extend(weft_translate::check(&snapshot));
    match args.output {
        Output::Text => crate::print(&weft_model::render_human(&findings))?,
        Output::Json => crate::print(&format!("{:#}\n", weft_model::render_json(&findings)))?,
    }
    let failed = findings.iter().any(weft_model::Diagnostic::is_error);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Names and texts of the files that `-f` names.
pub(crate) fn read_all(paths: &[PathBuf]) -> anyhow::Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    for path in paths {
        read(path, &mut files)?;
    }
    if files.is_empty() {
        bail!("no .yaml, .yml or .json file in what -f names");
    }
    Ok(files)
}

/// Adds a named file whatever its ending, or the YAML and JSON below a directory.
fn read(path: &Path, files: &mut Vec<(String, String)>) -> anyhow::Result<()> {
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("reading standard input")?;
        files.push(("-".into(), text));
        return Ok(());
    }
    let mut found = Vec::new();
    if path.is_dir() {
        list(path, 0, &mut found)?;
        found.sort();
    } else {
        found.push(path.to_owned());
    }
    for path in found {
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("reading {}", path.display()))?;
        files.push((path.display().to_string(), text));
    }
    Ok(())
}

fn list(dir: &Path, depth: usize, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    if depth > DEPTH_MAX {
        bail!("{}: more than {DEPTH_MAX} directories deep", dir.display());
    }
    let entries = std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // Editors' and Kubernetes' own files begin with a dot.
        if name.starts_with('.') {
            continue;
        }
        let ending = path.extension().and_then(|ending| ending.to_str());
        if path.is_dir() {
            list(&path, depth + 1, found)?;
        } else if matches!(ending, Some("yaml" | "yml" | "json")) {
            found.push(path);
        }
    }
    Ok(())
}
