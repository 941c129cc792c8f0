//! The engine's own Tokio runtime: built when the first remote store needs it, never the caller's.
//!
//! Requests run there as tasks, so a caller may use any executor, or none but `block_on`. A request belongs to
//! the future that asked for it: dropping that aborts the task. The runtime has two threads (they wait for
//! sockets; CPU work goes to the codec pool) and is shut down in the background, so that dropping the engine
//! neither waits for a stalled connection nor panics inside another runtime.

use crate::error::{Error, Result};
use futures::{FutureExt, future::BoxFuture};
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{
    runtime::{Builder, Handle, Runtime},
    task::JoinHandle,
};

/// Waiting for sockets and TLS of about 1 GB/s each; more threads would compete with the codecs.
const THREADS: usize = 2;

/// A lazily built runtime for requests.
#[derive(Default)]
pub struct Remote {
    runtime: Mutex<Option<Runtime>>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Remote")
    }
}

impl Remote {
    /// Prepares a runtime; no thread is started before the first request.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    fn handle(&self) -> Result<Handle> {
        let mut runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = runtime.as_ref() {
            return Ok(runtime.handle().clone());
        }
        let built = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("milepost-net")
            .enable_all()
            .build()
            .map_err(|e| Error::unavailable("cannot start the network threads").because(e))?;
        Ok(runtime.insert(built).handle().clone())
    }

    /// Runs `request` on the runtime.
    ///
    /// # Cancel safety
    /// The request starts at once; dropping the future aborts it.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        request: impl Future<Output = Result<T>> + Send + 'static,
    ) -> BoxFuture<'static, Result<T>> {
        let handle = match self.handle() {
            Ok(handle) => handle,
            Err(error) => return futures::future::ready(Err(error)).boxed(),
        };
        let mut task = AbortOnDrop(handle.spawn(request));
        async move {
            match (&mut task.0).await {
                Ok(result) => result,
                Err(error) if error.is_panic() => {
                    Err(Error::internal("a request panicked").because(error))
                }
                Err(_) => Err(Error::cancelled("the engine was shut down")),
            }
        }
        .boxed()
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        let runtime = self.runtime.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(runtime) = runtime {
            runtime.shutdown_background();
        }
    }
}

struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use futures::executor::block_on;

    #[test]
    fn a_request_runs_without_a_runtime_of_the_caller() {
        assert_eq!(block_on(Remote::new().run(async { Ok(7) })).unwrap(), 7);
    }

    #[test]
    fn a_panic_is_an_error_of_its_request_alone() {
        let remote = Remote::new();
        let bad = remote.run(async { if true { panic!("boom") } else { Ok(()) } });
        assert_eq!(block_on(bad).unwrap_err().kind(), ErrorKind::Internal);
        assert_eq!(block_on(remote.run(async { Ok(7) })).unwrap(), 7);
    }

    #[test]
    fn dropping_the_future_aborts_the_request() {
        let remote = Remote::new();
        let (tell, told) = std::sync::mpsc::channel::<()>();
        let request = remote.run(async move {
            let _held = tell;
            std::future::pending::<Result<()>>().await
        });
        drop(request);
        // The sender is dropped with the task, never used: the receiver sees the end, not a message.
        assert_eq!(told.recv(), Err(std::sync::mpsc::RecvError));
    }
}
