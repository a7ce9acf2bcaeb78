//! RabbitMQ of the machine's packages, and RabbitMQ 4 where it can be had.

use std::time::{Duration, Instant};

use e2e::{Rabbit, RabbitOptions, RabbitVersion, cache, wait};
use serde_json::json;

const SOON: Duration = Duration::from_secs(20);

async fn lives_survives_a_crash_and_goes(version: RabbitVersion) {
    let started = Instant::now();
    let options = RabbitOptions {
        version: version.clone(),
        ..RabbitOptions::default()
    };
    let rabbit = Rabbit::start(options).await.expect("the broker starts");
    eprintln!("{version:?} started in {:?}", started.elapsed());
    let (pid, dir) = (rabbit.pid().expect("it runs"), rabbit.dir());
    let vhost = rabbit.create_vhost().await.unwrap().name;
    let management = rabbit.management().unwrap();
    let quorum = json!({"x-queue-type": "quorum"});
    management
        .declare_queue(&vhost, "kept", quorum)
        .await
        .unwrap();
    let persistent = json!({"delivery_mode": 2});
    assert!(
        management
            .publish(&vhost, ("", "kept"), persistent, "body")
            .await
            .unwrap()
    );
    ready(&rabbit, &vhost, 1).await;

    let declared = Instant::now();
    rabbit.quorum_queue_on_disk(&vhost, "kept").await.unwrap();
    eprintln!("{version:?} queue on disk after {:?}", declared.elapsed());
    rabbit.kill().unwrap();
    assert!(
        management.get("overview").await.is_err(),
        "a dead broker answered"
    );
    let restarted = Instant::now();
    rabbit
        .restart()
        .await
        .expect("the broker starts on the data of a crash");
    eprintln!("{version:?} restarted in {:?}", restarted.elapsed());
    assert_ne!(rabbit.pid(), Some(pid));
    ready(&rabbit, &vhost, 1).await;

    let stopping = Instant::now();
    rabbit.stop().await.expect("an orderly shutdown");
    eprintln!("{version:?} stopped in {:?}", stopping.elapsed());
    rabbit.restart().await.unwrap();
    ready(&rabbit, &vhost, 1).await;

    let pid = rabbit.pid().expect("it runs");
    drop(rabbit);
    assert!(!crate::owner::alive(pid), "the process outlived its drop");
    assert!(!dir.exists(), "{} outlived its drop", dir.display());
}

async fn ready(rabbit: &Rabbit, vhost: &str, count: u64) {
    let management = rabbit.management().unwrap();
    wait::until("the message to be in the queue", SOON, async || {
        let queue = management.queue(vhost, "kept").await.ok().flatten();
        queue.is_some_and(|queue| queue.kind == "quorum" && queue.ready == count)
    })
    .await;
}

#[tokio::test]
async fn rabbitmq_keeps_messages_over_a_crash_and_is_gone_after_drop() {
    lives_survives_a_crash_and_goes(RabbitVersion::System).await;
}

#[tokio::test]
async fn rabbitmq_4_keeps_messages_over_a_crash_and_is_gone_after_drop() {
    if let Ok(root) = cache::rabbitmq4_root() {
        lives_survives_a_crash_and_goes(RabbitVersion::Chroot(root)).await;
    }
}

#[tokio::test]
async fn management_does_what_tests_need() {
    for rabbit in [
        Some(e2e::shared::rabbit().await),
        e2e::shared::rabbit4().await,
    ] {
        let Some(rabbit) = rabbit else { continue };
        let vhost = rabbit.create_vhost().await.unwrap().name;
        let api = rabbit.management().unwrap();
        api.declare_exchange(&vhost, "an exchange/1", "topic")
            .await
            .unwrap();
        api.declare_queue(&vhost, "kept", json!({"x-queue-type": "quorum"}))
            .await
            .unwrap();
        api.bind(&vhost, "an exchange/1", "kept", "order.*")
            .await
            .unwrap();
        assert_eq!(api.bindings(&vhost, "kept").await.unwrap().len(), 2);
        let to = ("an exchange/1", "order.pay");
        assert!(api.publish(&vhost, to, json!({}), "x").await.unwrap());
        ready(rabbit, &vhost, 1).await;
        assert!(api.purge_queue(&vhost, "kept").await.unwrap());
        ready(rabbit, &vhost, 0).await;

        assert!(
            api.unbind(&vhost, "an exchange/1", "kept", "order.*")
                .await
                .unwrap()
        );
        assert!(
            !api.publish(&vhost, to, json!({}), "x").await.unwrap(),
            "nothing is bound"
        );

        let limit = json!({"max-length": 10});
        api.set_policy(&vhost, "short", ("queues", "^kept$"), limit)
            .await
            .unwrap();
        wait::until("the policy to hold", SOON, async || {
            let queue = api.queue(&vhost, "kept").await.unwrap().expect("it exists");
            queue.policy.as_deref() == Some("short")
        })
        .await;
        assert!(api.delete_policy(&vhost, "short").await.unwrap());

        assert!(api.delete_queue(&vhost, "kept").await.unwrap());
        assert!(!api.delete_queue(&vhost, "kept").await.unwrap());
        assert!(api.delete_exchange(&vhost, "an exchange/1").await.unwrap());
    }
}

#[tokio::test]
async fn a_client_logs_in_with_its_own_rights_and_can_be_cut_off() {
    let rabbit = e2e::shared::rabbit().await;
    let vhost = rabbit.create_vhost().await.unwrap().name;
    let api = rabbit.management().unwrap();
    api.create_user("reader", "pw", "").await.unwrap();
    let url = rabbit.user_url("reader", "pw", &vhost);
    let properties = lapin::ConnectionProperties::default;
    assert!(
        lapin::Connection::connect(&url, properties())
            .await
            .is_err(),
        "no rights yet"
    );
    api.set_permissions(&vhost, "reader", ["^$", "^$", ".*"])
        .await
        .unwrap();
    let connection = lapin::Connection::connect(&url, properties())
        .await
        .unwrap();
    let closed = wait::until("the connection to be known", SOON, async || {
        let closed = api.close_connections(&vhost).await.unwrap();
        (closed > 0).then_some(closed)
    });
    assert_eq!(closed.await, 1);
    wait::until("the client to notice", SOON, async || {
        !connection.status().connected()
    })
    .await;
}

#[tokio::test]
async fn a_suspended_queue_confirms_nothing_until_it_is_woken() {
    let rabbit = e2e::shared::rabbit().await;
    let vhost = rabbit.create_vhost().await.unwrap();
    let api = rabbit.management().unwrap();
    for (queue, kind) in [("classic", "classic"), ("quorum", "quorum")] {
        let arguments = json!({ "x-queue-type": kind });
        api.declare_queue(&vhost.name, queue, arguments)
            .await
            .unwrap();
        rabbit.suspend_queue(&vhost.name, queue).await.unwrap();
        let properties = lapin::ConnectionProperties::default();
        let connection = lapin::Connection::connect(&vhost.amqp_url, properties).await;
        let connection = connection.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let select = lapin::options::ConfirmSelectOptions { nowait: false };
        channel.confirm_select(select).await.unwrap();
        let options = lapin::options::BasicPublishOptions {
            mandatory: true,
            immediate: false,
        };
        let persistent = lapin::BasicProperties::default().with_delivery_mode(2);
        let publish = channel.basic_publish("".into(), queue.into(), options, b"{}", persistent);
        let mut confirm = publish.await.unwrap();
        let wait = Duration::from_millis(500);
        let early = tokio::time::timeout(wait, &mut confirm).await;
        assert!(early.is_err(), "{queue}: {early:?}");
        rabbit.wake_queue(&vhost.name, queue).await.unwrap();
        assert!(confirm.await.unwrap().is_ack(), "{queue}");
    }
}
