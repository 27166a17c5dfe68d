//! Waiting for something to become so, with a deadline instead of a guess.

use std::{
    future::Future,
    time::{Duration, Instant},
};

/// How long things may take on a busy machine before a test says that they do not happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Polls `attempt` until it gives a value.
///
/// # Panics
/// When it has given none for [`PATIENCE`]; the message says `what` was waited for and the last reason.
pub async fn eventually<T, E, F>(what: &str, mut attempt: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, E>>,
    E: std::fmt::Display,
{
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(error) if Instant::now() >= deadline => {
                panic!("not within {PATIENCE:?}: {what}: {error:#}")
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(25)).await,
        }
    }
}
