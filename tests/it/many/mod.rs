//! Several writers of one step: processes that are killed and stopped, and what is left behind.
//!
//! [`job`] is what a participant does, in a process or in a thread; [`stages`] names the instants of a save; [`victims`]
//! runs processes that are killed or stopped there, and [`kills`] judges what they leave; [`meshes`] saves random
//! shardings by threads and restores them into others, [`processes`] does so by processes.
//! [`managers`] are the front of it, on threads.

mod job;
mod kills;
mod managers;
mod meshes;
mod processes;
mod stages;
mod victims;
