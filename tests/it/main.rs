//! The one integration-test binary: a room a module, the laws among them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "seeds and counts belong in the output of a test")]

mod bench;
mod checkpoint;
mod cli;
mod cli_runs;
mod crash;
mod crash_states;
mod damage;
mod disk;
mod disks;
mod faults;
mod foreign;
mod fuzz;
mod hostile;
mod items;
mod laws;
mod manager;
mod manager_model;
mod many;
mod options;
mod pressure;
mod remote;
mod requests;
