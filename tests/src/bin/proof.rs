//! The proof with real processes: three servers under faults, and whether what clients were told is true.
//!
//! ```console
//! $ cargo run --release --package coracle-tests --bin proof -- --seconds 300
//! $ cargo run --release --package coracle-tests --bin proof -- --seconds 60 --seed 7 --faults kill,partition
//! ```
//!
//! It makes network namespaces and disks of its own and needs the right to: root, or a user who may make user namespaces (then disks cannot
//! stand still). Faults and what
//! clients ask are drawn by the seed; when what happens is the machine's. The exit code is 0 when nothing was wrong, 1 when
//! something was, and 2 when it cannot run here.

use std::process::ExitCode;
use std::time::Duration;

use coracle_tests::proof::{self, Fault, Options};

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(wrong) => {
            eprintln!("proof: {wrong}");
            return ExitCode::from(2);
        }
    };
    proof::within(|| {
        let wrong = proof::run(&options);
        for what in &wrong {
            println!("WRONG: {what}");
        }
        if wrong.is_empty() {
            println!("nothing was wrong");
            return ExitCode::SUCCESS;
        }
        let faults: Vec<String> = options.faults.iter().map(Fault::to_string).collect();
        println!(
            "again: cargo run --package coracle-tests --bin proof -- --seconds {} --seed {} --clients {} --faults {}",
            options.time.as_secs(),
            options.seed,
            options.clients,
            faults.join(",")
        );
        ExitCode::FAILURE
    })
}

fn options() -> Result<Options, String> {
    let mut options = Options { time: Duration::from_secs(60), seed: 1, faults: Fault::ALL.to_vec(), clients: 8 };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        let number = |text: String| text.parse::<u64>().map_err(|_| format!("{text:?} is no number"));
        match word.as_str() {
            "--seconds" => options.time = Duration::from_secs(number(value()?)?),
            "--seed" => options.seed = number(value()?)?,
            "--clients" => options.clients = usize::try_from(number(value()?)?).map_err(|error| error.to_string())?,
            "--faults" => options.faults = value()?.split(',').map(str::parse).collect::<Result<_, _>>()?,
            _ => {
                return Err(format!(
                    "{word:?} is not known; there are --seconds N, --seed N, --clients N, --faults A,B,…"
                ));
            }
        }
    }
    Ok(options)
}
