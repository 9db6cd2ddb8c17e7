//! `coracle completion`: what the shell needs to complete our commands.

use clap::CommandFactory;
use clap_complete::Shell;

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
    clap_complete::generate(arguments.shell, &mut crate::Arguments::command(), "coracle", &mut std::io::stdout());
    Ok(())
}
