//! `coracle version`.

use crate::output::say;
use crate::status::Form;

/// Print the version
#[derive(clap::Args)]
pub struct Arguments {
    /// Form of the output; JSON says as well which formats of the log it knows
    #[arg(short, long, value_enum, default_value_t = Form::Text)]
    output: Form,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let own = coracle_sdk::Version::own();
    match arguments.output {
        Form::Text => say!("coracle {}", own.version)?,
        // A server asks the program that it is to begin anew with.
        Form::Json => say!("{}", serde_json::to_string(&own)?)?,
    }
    Ok(())
}
