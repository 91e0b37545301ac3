//! `weft analyze`: the control plane's findings on files, without a control plane.

use crate::cli::{AnalyzeArgs, FindingsOutput, Threshold};
use anyhow::{Context as _, bail};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use weft_model::Severity;

/// Directory levels below a named one.
const DEPTH_MAX: usize = 32;

/// Fails (exit code 1) when a finding is as bad as `--failure-threshold` says.
pub(crate) fn run(args: &AnalyzeArgs) -> anyhow::Result<ExitCode> {
    if args.live {
        return live(args);
    }
    let files = read_all(&args.files)?;
    let mut analysis = weft_model::Analysis::of(&files);
    let of_patches = weft_translate::check(&analysis.snapshot);
    analysis.add(of_patches);
    let findings = analysis.findings;
    match args.output {
        FindingsOutput::Text => crate::print(&weft_model::render_human(&findings))?,
        FindingsOutput::Json => {
            crate::print(&format!("{:#}\n", weft_model::render_json(&findings)))?;
        }
        FindingsOutput::Yaml => crate::print(&weft_model::render_yaml(&findings))?,
    }
    let worst = findings.iter().map(|found| found.severity).min();
    Ok(verdict(args.failure_threshold, worst))
}

/// The findings of a running control plane, which it prints itself.
fn live(args: &AnalyzeArgs) -> anyhow::Result<ExitCode> {
    let address = args.api.trim_start_matches("http://").trim_end_matches('/');
    let get = |format: &str| -> anyhow::Result<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let path = format!("/debug/analyzez?output={format}");
        let page = runtime.block_on(weft_control::status::client::get(address, &path))?;
        String::from_utf8(page).context("the control plane sent no text")
    };
    let json = get("json")?;
    match args.output {
        FindingsOutput::Text => crate::print(&get("text")?)?,
        FindingsOutput::Json => crate::print(&json)?,
        FindingsOutput::Yaml => crate::print(&get("yaml")?)?,
    }
    let findings: Vec<serde_json::Value> =
        serde_json::from_str(&json).context("the control plane sent no list of findings")?;
    let severities = findings.iter().filter_map(|found| match found["severity"].as_str()? {
        "error" => Some(Severity::Error),
        "warning" => Some(Severity::Warning),
        "info" => Some(Severity::Info),
        _ => None,
    });
    Ok(verdict(args.failure_threshold, severities.min()))
}

fn verdict(threshold: Threshold, worst: Option<Severity>) -> ExitCode {
    let limit = match threshold {
        Threshold::Info => Severity::Info,
        Threshold::Warning => Severity::Warning,
        Threshold::Error => Severity::Error,
        Threshold::Never => return ExitCode::SUCCESS,
    };
    // The worst comes first in the order of severities.
    match worst {
        Some(worst) if worst <= limit => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
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
