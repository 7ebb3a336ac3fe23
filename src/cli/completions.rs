//! `edgeward completions`: a shell's completion script.

use super::error::CliError;
use super::exit::ExitCode;
use clap_complete::Shell;
use std::io::Write;

/// Arguments of `completions`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// bash, zsh, fish, elvish or powershell.
    shell: Shell,
}

/// Carries it out.
pub(super) fn run(args: &Args, mut command: clap::Command) -> Result<ExitCode, CliError> {
    // Into memory first: a closed stdout is no reason to panic.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "edgeward", &mut script);
    std::io::stdout().lock().write_all(&script)?;
    Ok(ExitCode::Succeeded)
}
