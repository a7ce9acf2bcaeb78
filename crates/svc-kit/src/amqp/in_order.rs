//! Many publishes at once.

use std::future::poll_fn;
use std::task::Poll;

use futures::future::maybe_done;

/// Begins all of these, in their order, then awaits them from the last to the first.
///
/// What `join_all` gives, without a task for each, and with few wake-ups: lapin takes a publish when it
/// is first polled and writes them in that order, so when the last one is written all are.
pub async fn all_in_order<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut all = Vec::with_capacity(futures.size_hint().0);
    let mut futures = Some(futures);
    poll_fn(|context| {
        for future in futures.take().into_iter().flatten() {
            let mut future = Box::pin(maybe_done(future));
            let _begun = future.as_mut().poll(context);
            all.push(future);
        }
        Poll::Ready(())
    })
    .await;
    for future in all.iter_mut().rev() {
        future.as_mut().await;
    }
    all.iter_mut()
        .filter_map(|future| future.as_mut().take_output())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn all_begin_in_order_before_any_is_awaited() {
        let begun = Mutex::new(Vec::new());
        let (senders, receivers): (Vec<_>, Vec<_>) =
            (0..100).map(|_| oneshot::channel::<usize>()).unzip();
        let begun = &begun;
        let futures = receivers
            .into_iter()
            .enumerate()
            .map(|(n, receiver)| async move {
                begun.lock().expect("no panic").push(n);
                receiver.await
            });
        let answers = async {
            tokio::task::yield_now().await;
            assert_eq!(*begun.lock().expect("no panic"), Vec::from_iter(0..100));
            for (n, sender) in senders.into_iter().enumerate() {
                sender.send(n).expect("it is awaited");
                tokio::task::yield_now().await;
            }
        };
        let (outputs, ()) = tokio::join!(all_in_order(futures), answers);
        let outputs: Result<Vec<_>, _> = outputs.into_iter().collect();
        assert_eq!(outputs, Ok(Vec::from_iter(0..100)));
    }
}
