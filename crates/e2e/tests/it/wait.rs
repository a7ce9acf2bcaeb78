//! Waiting for conditions.

use std::{cell::Cell, time::Duration};

use e2e::wait::{try_until, until};

#[tokio::test]
async fn a_wait_ends_when_the_condition_holds_and_gives_its_value() {
    let looks = Cell::new(0);
    let value = until("the third look", Duration::from_secs(5), async || {
        looks.set(looks.get() + 1);
        (looks.get() == 3).then_some("there")
    });
    assert_eq!(value.await, "there");
}

#[tokio::test]
async fn a_wait_in_vain_says_for_what() {
    let waited = try_until("the moon", Duration::from_millis(50), async || false).await;
    assert!(
        waited
            .expect_err("never true")
            .to_string()
            .contains("the moon")
    );
}

#[tokio::test]
async fn a_look_that_hangs_counts_against_the_time() {
    let waited = try_until("an answer", Duration::from_millis(50), async || {
        std::future::pending::<bool>().await
    });
    assert!(waited.await.is_err());
}
