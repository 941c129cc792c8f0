//! The `milepost` binary: see `milepost --help`.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
