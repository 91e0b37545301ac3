//! The programs that write rules, and which of them work here. Owns running them; must not know
//! what rules are for.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use weft_capture::{Family, RuleSet, iptables, nft};

use super::args::BackendChoice;

/// How long to wait for another program's lock on the rules, in seconds.
const LOCK_SECONDS: &str = "30";

/// A program that writes rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backend {
    /// `iptables-restore` with what stands between its two words.
    Iptables(&'static str),
    /// `nft`.
    Nft,
}

/// Candidates, best first. Old tables are asked for last: on a kernel without them they only load
/// modules, and rules in both are read twice.
const CANDIDATES: [Backend; 4] =
    [Backend::Iptables("-nft"), Backend::Iptables(""), Backend::Nft, Backend::Iptables("-legacy")];

/// All that a choice leaves.
pub(super) fn all(choice: BackendChoice) -> Vec<Backend> {
    match choice {
        BackendChoice::Auto => CANDIDATES.to_vec(),
        BackendChoice::Iptables => vec![Backend::Iptables("")],
        BackendChoice::IptablesNft => vec![Backend::Iptables("-nft")],
        BackendChoice::IptablesLegacy => vec![Backend::Iptables("-legacy")],
        BackendChoice::Nft => vec![Backend::Nft],
    }
}

/// The back end to use: the old tables if somebody's rules stand there already, else the first that
/// really writes a rule of our kind here.
pub(super) fn choose(choice: BackendChoice, families: &[Family]) -> anyhow::Result<Backend> {
    let legacy = Backend::Iptables("-legacy");
    if choice == BackendChoice::Auto
        && families.iter().any(|family| legacy.saved(*family).is_ok_and(|saved| saved.has_rules()))
    {
        return Ok(legacy);
    }
    let mut failures = String::new();
    for backend in all(choice) {
        match families.iter().try_for_each(|family| backend.probe(*family)) {
            Ok(()) => return Ok(backend),
            Err(error) => {
                failures.push_str(&format!("\n  {}: {}", backend.name(), crate::explain(&error)));
            }
        }
    }
    bail!(
        "nothing here can write capture rules (it takes root or NET_ADMIN and NET_RAW, one of \
         iptables and nft, and a kernel with their NAT):{failures}"
    )
}

impl Backend {
    pub(super) fn name(self) -> String {
        match self {
            Backend::Iptables(kind) => format!("iptables{kind}"),
            Backend::Nft => "nft".into(),
        }
    }

    fn program(self, family: Family, what: &str) -> String {
        match (self, family) {
            (Backend::Nft, _) => "nft".into(),
            (Backend::Iptables(kind), Family::V4) => format!("iptables{kind}-{what}"),
            (Backend::Iptables(kind), Family::V6) => format!("ip6tables{kind}-{what}"),
        }
    }

    /// The command that reads [`Backend::text`].
    pub(super) fn command(self, family: Family) -> String {
        let arguments = match self {
            Backend::Nft => "-f -",
            Backend::Iptables(_) => "--noflush",
        };
        format!("{} {arguments}", self.program(family, "restore"))
    }

    /// The rules in this back end's spelling.
    pub(super) fn text(self, rules: &RuleSet) -> String {
        match self {
            Backend::Iptables(_) => iptables::restore(rules),
            Backend::Nft => nft::replace(rules),
        }
    }

    /// Writes a rule that needs what ours need, into a chain nothing leads to, and removes it.
    fn probe(self, family: Family) -> anyhow::Result<()> {
        match self {
            Backend::Nft => {
                let name = nft::family_name(family);
                self.feed(
                    family,
                    &format!(
                        "table {name} weft_probe {{\n chain c {{\n  type nat hook output priority \
                         -100; policy accept;\n  meta skuid 1 meta l4proto tcp redirect to :1\n \
                         }}\n}}\ndelete table {name} weft_probe\n"
                    ),
                )
            }
            Backend::Iptables(_) => {
                let rule = "-A WEFT_PROBE -p tcp -m owner --uid-owner 1 -j REDIRECT --to-ports 1";
                self.feed(family, &format!("*nat\n:WEFT_PROBE - [0:0]\n{rule}\nCOMMIT\n"))?;
                self.feed(family, "*nat\n-F WEFT_PROBE\n-X WEFT_PROBE\nCOMMIT\n")
            }
        }
    }

    /// What stands otherwise than in `rules`.
    pub(super) fn differences(self, rules: &RuleSet, marks: &[u32]) -> anyhow::Result<Vec<String>> {
        match self {
            Backend::Iptables(_) => Ok(self.saved(rules.family)?.differences(rules, marks)),
            Backend::Nft => {
                let listed = self.listed(rules.family).unwrap_or_default();
                Ok(nft::differences(rules, &listed))
            }
        }
    }

    pub(super) fn write(self, rules: &RuleSet) -> anyhow::Result<()> {
        self.feed(rules.family, &self.text(rules)).context("writing the capture rules")
    }

    /// Removes everything of ours.
    pub(super) fn remove(self, rules: &RuleSet, marks: &[u32]) -> anyhow::Result<()> {
        let text = match self {
            Backend::Nft => nft::cleanup(rules.family),
            Backend::Iptables(_) => iptables::cleanup(&self.saved(rules.family)?, rules, marks),
        };
        match text.is_empty() {
            true => Ok(()),
            false => self.feed(rules.family, &text).context("removing older capture rules"),
        }
    }

    /// As [`Backend::remove`]; false if nothing was there, or the program is not.
    pub(super) fn remove_if_there(self, rules: &RuleSet, marks: &[u32]) -> anyhow::Result<bool> {
        let there = match self {
            Backend::Nft => self.listed(rules.family).is_ok(),
            Backend::Iptables(_) => match self.saved(rules.family) {
                Ok(saved) => !iptables::cleanup(&saved, rules, marks).is_empty(),
                Err(_) => false,
            },
        };
        if there {
            self.remove(rules, marks)?;
        }
        Ok(there)
    }

    fn saved(self, family: Family) -> anyhow::Result<iptables::Saved> {
        let text = run(&self.program(family, "save"), &[], None)?;
        Ok(iptables::Saved::parse(&text, family))
    }

    fn listed(self, family: Family) -> anyhow::Result<String> {
        run("nft", &["-nn", "list", "table", nft::family_name(family), nft::TABLE], None)
    }

    fn feed(self, family: Family, text: &str) -> anyhow::Result<()> {
        let arguments: &[&str] = match self {
            Backend::Nft => &["-f", "-"],
            Backend::Iptables(_) => &["--noflush", "-w", LOCK_SECONDS],
        };
        run(&self.program(family, "restore"), arguments, Some(text)).map(drop)
    }
}

/// Runs a program to its end; its output, or what it said against us.
pub(super) fn run(
    program: &str,
    arguments: &[&str],
    input: Option<&str>,
) -> anyhow::Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        // A program that reads no further says why when it ends.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().with_context(|| format!("waiting for {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {}", arguments.join(" "), said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
