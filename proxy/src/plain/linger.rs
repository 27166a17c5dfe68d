//! Requests that are cancelled as soon as they are sent, on a connection that others share.
//!
//! An HTTP/2 server takes the reset of a stream that it has not looked at yet for rapid reset (CVE-2023-44487), and many
//! close the connection after a few (hyper and h2 at 20). One caller's cancels would so cost all callers of the pod their
//! requests. A request that is given up while it is young is therefore held for the rest of [`YOUNG`], and reset then: by
//! that time the server has looked at it. Its place on the connection stays taken, which bounds the rate.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// Until a server has surely looked at a stream.
pub(super) const YOUNG: Duration = Duration::from_millis(50);

/// A request under way, together with what it holds.
pub(super) struct Lingering<F: Future + 'static> {
    request: Option<Pin<Box<F>>>,
    grown_up: Instant,
}

impl<F: Future + 'static> Lingering<F> {
    /// To be polled at once: that sends the request.
    pub(super) fn new(request: F) -> Self {
        Self { request: Some(Box::pin(request)), grown_up: Instant::now() + YOUNG }
    }
}

impl<F: Future + 'static> Future for Lingering<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Some(request) = &mut self.request else { return Poll::Pending };
        let polled = request.as_mut().poll(cx);
        if polled.is_ready() {
            self.request = None;
        }
        polled
    }
}

impl<F: Future + 'static> Drop for Lingering<F> {
    fn drop(&mut self) {
        let Some(request) = self.request.take() else { return };
        let grown_up = self.grown_up;
        if Instant::now() < grown_up {
            tokio::task::spawn_local(async move {
                sleep_until(grown_up).await;
                drop(request);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, rc::Rc};

    use tokio::task::LocalSet;

    use super::*;

    struct Dropped(Rc<Cell<bool>>);

    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.set(true);
        }
    }

    /// A request that never ends, given up after `age`; whether it is gone at once, and whether after [`YOUNG`].
    async fn given_up_after(age: Duration) -> (bool, bool) {
        let gone = Rc::new(Cell::new(false));
        let held = Dropped(Rc::clone(&gone));
        let mut request = Lingering::new(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        let waited = tokio::time::timeout(age, &mut request).await;
        assert!(waited.is_err());
        drop(request);
        let at_once = gone.get();
        tokio::time::sleep(YOUNG).await;
        (at_once, gone.get())
    }

    #[tokio::test(start_paused = true)]
    async fn a_young_request_is_held_until_it_was_looked_at() {
        let young = LocalSet::new().run_until(given_up_after(YOUNG / 5)).await;
        assert_eq!(young, (false, true));
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_one_ends_at_once() {
        let old = LocalSet::new().run_until(given_up_after(YOUNG * 2)).await;
        assert_eq!(old, (true, true));
    }
}
