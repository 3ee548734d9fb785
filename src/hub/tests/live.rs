//! Many streams on several threads while the feed is being written.

use std::{sync::atomic::Ordering, time::Duration};

use crate::hub::{Subscription, testing::*};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn streams_on_many_threads_miss_nothing_of_a_feed_that_moves() {
    const TRANSACTIONS: usize = 400;
    let mut world = World::new();
    let orders = world.relation(1, "shop.orders", &["id", "note"]);
    let items = world.relation(2, "shop.items", &["id", "note"]);
    world.publish(&["shop.orders", "shop.items"]);
    let mut readers = Vec::new();
    for reader in 0..12 {
        let filter = [None, Some(tables(&["shop.orders"])), Some(tables(&["shop.items"]))][reader % 3].clone();
        let wanted = filter.as_ref().map(|filter| filter.tables[0].clone());
        let mut client = world.open(Subscription { filter, ..earliest() }).await;
        readers.push(tokio::spawn(async move {
            let mut seen = Vec::new();
            while seen.last() != Some(&(TRANSACTIONS - 1).to_string()) {
                let line = client.line_within(DEADLINE).await.expect("a line before the deadline");
                let id = line.split('[').nth(1).and_then(|values| values.split(' ').next());
                seen.extend(id.map(str::to_owned));
            }
            (wanted, seen)
        }));
    }
    let mut expected = [Vec::new(), Vec::new()];
    for id in 0..TRANSACTIONS {
        world.begin("");
        let last = id == TRANSACTIONS - 1;
        for (index, relation) in [&orders, &items].into_iter().enumerate() {
            if last || id % 3 != index {
                world.insert(relation, &[&id.to_string(), "x"]);
                expected[index].push(id.to_string());
            }
            if id % 5 == 0 {
                world.seal();
            }
        }
        world.commit();
        world.seal();
        world.feed.hot_from.store((id as u64).saturating_sub(20), Ordering::Relaxed);
        if id % 50 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let mut everything: Vec<String> = Vec::new();
    for id in 0..TRANSACTIONS {
        let times = expected.iter().filter(|ids| ids.contains(&id.to_string())).count();
        everything.extend(std::iter::repeat_n(id.to_string(), times));
    }
    for reader in readers {
        let (wanted, seen) = reader.await.expect("no panic");
        match wanted.as_deref() {
            Some("shop.orders") => assert_eq!(seen, expected[0]),
            Some(_) => assert_eq!(seen, expected[1]),
            // The last id comes twice; the reader stops at the first.
            None => assert_eq!(seen, everything[..everything.len() - 1]),
        }
    }
}
