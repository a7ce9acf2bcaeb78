use std::time::Duration;

use e2e::Flavor;
use e2e::rig::{LATER, Rig, SOON};
use relay::engine::{LoadQuery, PageQuery, Read};
use relay::hash::tag_of;
use relay::pause::{Pauses, Watch};
use relay::source::table::{TableNews, loader, page_reader};
use tokio::sync::mpsc;

use super::{Outbox, ids};

const BEGIN: PageQuery = PageQuery {
    after: 0,
    upto: None,
    fence: true,
    positions: true,
    payloads: true,
};

async fn next(news: &mut mpsc::Receiver<TableNews>) -> TableNews {
    tokio::time::timeout(LATER, news.recv())
        .await
        .unwrap()
        .unwrap()
}

async fn rows(news: &mut mpsc::Receiver<TableNews>) -> Vec<Read> {
    match next(news).await {
        TableNews::Rows(mut found) => {
            found.rows.sort_by_key(|row| row.head.id);
            found.rows
        }
        other => panic!("{other:?}"),
    }
}

e2e::on_each_server!(a_page_has_pending_rows_and_the_small_ones_whole);
async fn a_page_has_pending_rows_and_the_small_ones_whole(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let rig = Rig::new(db).await;
    let small = rig.insert_one("a", "order.pay", b"{}").await;
    rig.insert_one("b", "order.pay", &[b'x'; 5000]).await;
    rig.insert(2).await;
    let all = ids(&rig).await;
    rig.sql(&format!(
        "UPDATE outbox SET status = 2 WHERE id = {}",
        all[2]
    ))
    .await;
    rig.sql(&format!(
        "UPDATE outbox SET attempts = 3, next_attempt_at = UTC_TIMESTAMP(6) + INTERVAL 1 HOUR \
         WHERE id = {}",
        all[3]
    ))
    .await;
    let Outbox {
        connection,
        queries,
        ..
    } = Outbox::of(&rig).await;
    let (pages, wanted) = mpsc::channel(1);
    let (news_in, mut news) = mpsc::channel(4);
    let watch = Watch::new(Pauses::default());
    let reader = page_reader::run(connection, queries, watch, wanted, news_in);
    let reader = svc_kit::tasks::unit(reader);
    pages.send(BEGIN).await.unwrap();
    let TableNews::Page(page) = next(&mut news).await else {
        panic!("no page")
    };
    let found: Vec<u64> = page.rows.iter().map(|row| row.head.id).collect();
    assert_eq!(found, [all[0], all[1], all[3]]);
    assert_eq!((page.upto, page.read_to), (all[3], all[3]));
    assert!(page.start.is_some() && page.start < page.end, "{page:?}");
    assert_eq!(page.unreadable, None);
    let [first, large, delayed] = page.rows.try_into().unwrap();
    assert_eq!(first.head.tag, tag_of(&small));
    assert_eq!(first.row.unwrap().message_id, small);
    assert!(first.pending && !first.head.has_history && first.head.wait.is_none());
    assert!(large.row.is_none() && large.head.bytes >= 5000);
    assert_eq!(first.head.route, large.head.route);
    assert_ne!(first.head.key, large.head.key);
    assert!(delayed.head.has_history && delayed.head.attempts == 3);
    assert!(delayed.head.wait.unwrap() > Duration::from_mins(59));

    rig.sql("INSERT INTO outbox_pauses (scope, actor, reason) VALUES ('relay', 'ann', 'x')")
        .await;
    let TableNews::Pauses(pauses) = next(&mut news).await else {
        panic!("no pauses")
    };
    assert!(pauses.for_engine().whole);
    drop(pages);
    reader.await.unwrap().unwrap();
}

e2e::on_each_server!(rows_are_loaded_by_id_whatever_their_status_and_within_the_bytes);
async fn rows_are_loaded_by_id_whatever_their_status_and_within_the_bytes(flavor: Flavor) {
    let db = e2e::shared::database(flavor).await;
    let rig = Rig::new(db).await;
    for bytes in [2, 5_000, 9_000, 5_000] {
        rig.insert_one("k", "order.pay", &vec![b'x'; bytes]).await;
    }
    let all = ids(&rig).await;
    rig.sql(&format!(
        "UPDATE outbox SET status = 3 WHERE id = {}",
        all[3]
    ))
    .await;
    let Outbox {
        connection,
        queries,
        ..
    } = Outbox::of(&rig).await;
    let (loads, wanted) = mpsc::channel(1);
    let (news_in, mut news) = mpsc::channel(4);
    let loading = svc_kit::tasks::unit(loader::run(connection, queries, wanted, news_in));
    let mut load = async |ids: &[u64], bytes: usize| {
        let ids = ids.to_vec();
        loads.send(LoadQuery { ids, bytes }).await.unwrap();
        rows(&mut news).await
    };
    let whole = |rows: &[Read]| -> Vec<u64> {
        let whole = rows.iter().filter(|row| row.row.is_some());
        whole.map(|row| row.head.id).collect()
    };

    let heads = load(&all, 0).await;
    assert_eq!(heads.len(), 4);
    assert!(whole(&heads).is_empty() && !heads[3].pending);
    let some = load(&[all[3], all[0], all[1], all[2], 999_999], 10_000).await;
    assert_eq!(some.len(), 4);
    assert_eq!(whole(&some), all[..2]);
    assert_eq!(some[1].row.as_ref().unwrap().payload.len(), 5_000);
    let large = load(&[all[2]], 1).await;
    assert_eq!(whole(&large), all[2..3], "the first one always");

    // Somebody locks the table, and lets go of it.
    let mut lock = rig.pool.acquire().await.unwrap();
    sqlx::raw_sql("LOCK TABLES outbox WRITE")
        .execute(&mut *lock)
        .await
        .unwrap();
    let ids = all.clone();
    loads.send(LoadQuery { ids, bytes: 0 }).await.unwrap();
    let refused = tokio::time::timeout(SOON, news.recv()).await;
    let refused = refused.unwrap().unwrap();
    assert!(matches!(refused, TableNews::Refused(_)), "{refused:?}");
    sqlx::raw_sql("UNLOCK TABLES")
        .execute(&mut *lock)
        .await
        .unwrap();
    assert_eq!(rows(&mut news).await.len(), 4);
    drop(loads);
    loading.await.unwrap().unwrap();
}
