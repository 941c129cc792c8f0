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
//! What fails when one protection is taken out (46 were, one at a time; these are those of the commit):
//!
//! ```text
//! seeds      an attempt is not ended, or without a look who was first · the finaliser takes over by no rename, or the
//!            older name · no look at the directory's first object · the record put without a condition · a record of
//!            another taken for one's own · holes · a listing trusted · parts swept before the commit · nobody takes
//!            over, or a lease is not renewed
//! unit tests what an exchange has left, or what came late to a committed attempt, is finalised · parts of another
//!            attempt or plan, or twice · plans or given declarations not compared · a part replaced, or put before its
//!            bytes are durable · sweeps that do not look at parts · second processes in a session or the lobby · an
//!            heir that does not say so · turns
//! nothing    the founder finalises under the name that all write to · the heir's directory has no mark, the heir's claim
//!            is not renewed · what was moved is deleted before the look · directories looked for once ·
//!            an heir that does not wait for the lease: it costs time, no step
//! ```
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
