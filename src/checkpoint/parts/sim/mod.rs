//! The protocol of many writers, simulated: the same code over a clock, a store, a launcher and processes of the seed.
//!
//! ```text
//!   seed ─► [`executor`]   one thread: which ready task is next, when time jumps, who dies or stops where
//!           [`machine`]    clock, processes and time, as the engine sees them
//!           [`store`], [`wire`]  requests overlap, fail, hang, come twice, lose their answers; with or without renames
//!           [`launcher`]   messages are late, lost or come twice; members vanish
//!           [`trouble`]    what happens to each participant
//!           [`job`]        2 to 64 participants of a random mesh on random hosts, some of them twice
//!           [`world`]      saves in trouble, and what must hold after each
//!           [`seeds`]      the tests: many seeds, and some of them twice
//! ```
//! The engine's jobs and the renewals of its leases are tasks of the simulation (`tasks::simulated`), and what is known of
//! a process (`/proc` otherwise) and the time of the store come from it. Everything else is what users run.
//!
//! The listings of parts and of a rendezvous are out of date now and then, as those of network file systems are. Those of
//! attempts and of marks never are: who gives up must find the attempt's directory under its present name (spec, C32).
//!
//! **Invariant:** nothing here asks the system for time, chance or threads, so a seed has one end.

mod executor;
mod job;
mod launcher;
mod machine;
mod seeds;
mod store;
mod trouble;
mod wire;
mod world;
