//! `coracle completion`: what the shell needs to complete our commands.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::output;

/// Print a shell's completion script
///
/// For instance: coracle completion bash > ~/.local/share/bash-completion/completions/coracle
#[derive(clap::Args)]
pub struct Arguments {
    /// The shell
    shell: Shell,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut crate::Arguments::command(), "coracle", &mut script);
    output::line(script.trim_ascii_end()).map(drop)
}
