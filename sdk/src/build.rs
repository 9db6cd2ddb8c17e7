//! Builds a Rust package into a component with the cargo of the person's machine.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

/// The target whose output is a component.
const TARGET: &str = "wasm32-wasip2";

/// Why a component could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A program is missing.
    #[error("run {0}: install Rust with rustup, then try again")]
    Missing(&'static str, #[source] std::io::Error),
    /// The target could not be added.
    #[error("add the target {TARGET}; run `rustup target add {TARGET}` to see why:\n{0}")]
    Target(String),
    /// The package does not build.
    #[error("build {package} in {workspace}:\n{output}")]
    Build {
        /// The package.
        package: String,
        /// Where it is.
        workspace: PathBuf,
        /// What cargo said.
        output: String,
    },
}

/// Builds `package` of the cargo workspace in `workspace` for `wasm32-wasip2` in release mode, adding the target when
/// rustup does not have it yet; returns the component's path.
///
/// Costs a second when nothing changed; the first build of a small guest takes some ten seconds.
pub async fn component(workspace: &Path, package: &str) -> Result<PathBuf, BuildError> {
    add_target(workspace).await?;
    let target_dir = workspace.join("target");
    // The flags of the program's own build (a native linker, coverage) do not fit a guest.
    let output = Command::new("cargo")
        .args(["build", "--release", "--locked", "--quiet", "--target", TARGET, "--package", package, "--target-dir"])
        .arg(&target_dir)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET")
        .current_dir(workspace)
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(|e| BuildError::Missing("cargo", e))?;
    let failed = |output: String| BuildError::Build { package: package.into(), workspace: workspace.into(), output };
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    let path = target_dir.join(TARGET).join("release").join(format!("{}.wasm", package.replace('_', "-")));
    let underscored = path.with_file_name(format!("{}.wasm", package.replace('-', "_")));
    [path, underscored]
        .into_iter()
        .find(|path| path.exists())
        .ok_or_else(|| failed("cargo left no component; is the package a binary or a cdylib?".to_owned()))
}

async fn add_target(workspace: &Path) -> Result<(), BuildError> {
    let rustup = |args: &'static [&'static str]| {
        Command::new("rustup").args(args).current_dir(workspace).stdin(Stdio::null()).output()
    };
    let installed = match rustup(&["target", "list", "--installed"]).await {
        Ok(output) => output,
        // A toolchain that did not come by rustup brings its targets itself; cargo will say if it does not.
        Err(_) => return Ok(()),
    };
    if String::from_utf8_lossy(&installed.stdout).lines().any(|line| line.trim() == TARGET) {
        return Ok(());
    }
    let added = rustup(&["target", "add", TARGET]).await.map_err(|e| BuildError::Missing("rustup", e))?;
    if added.status.success() {
        Ok(())
    } else {
        Err(BuildError::Target(String::from_utf8_lossy(&added.stderr).into_owned()))
    }
}
