//! The loop when nobody speaks: ends, repairs, marks.

use super::*;

#[test]
fn a_table_that_others_removed_is_made_anew_and_reported() {
    let mut world = World::connected();
    world.assign(&[grant(1, ALICE, 60)]);
    world.answers();
    *world.table.borrow_mut() = Ruleset::default();
    world.look();
    assert!(world.lets_in(ALICE));
    assert!(matches!(
        world.said().as_slice(),
        [ToServer::Report(Report {
            code: "TABLE_REPAIRED",
            ..
        })]
    ));
}

#[test]
fn a_mark_is_written_each_minute_while_a_grant_lives() {
    let mut world = World::connected();
    let marks = |world: &World| {
        world
            .records
            .borrow()
            .iter()
            .filter(|record| matches!(record, Record::Marked(_)))
            .count()
    };
    world.after(61);
    world.look();
    assert_eq!(marks(&world), 0);
    world.assign(&[grant(1, ALICE, 600)]);
    for _ in 0..24 {
        world.after(5);
        world.look();
    }
    assert_eq!(marks(&world), 2);
    for _ in 0..48 {
        world.after(20);
        world.look();
    }
    let last = world
        .records
        .borrow()
        .iter()
        .rev()
        .find_map(|record| match record {
            Record::Marked(mark) => Some(mark.at),
            _ => None,
        });
    assert!(
        last.is_some_and(|last| last > BootTime::new(Duration::from_secs(661))),
        "one follows the end: {last:?}"
    );
    let after = marks(&world);
    world.after(120);
    world.look();
    assert_eq!(marks(&world), after);
}

#[tokio::test]
async fn the_loop_ends_openings_precisely_and_stops_when_told() {
    let mut world = World::connected();
    world.assign(&[grant(1, ALICE, 1)]);
    let (_to_enforcer, from_server) = mpsc::channel(4);
    let World {
        enforcer,
        effects,
        clock,
        ..
    } = world;
    effects.borrow_mut().clear();
    clock.flow();
    struct Silent;
    impl Notices for Silent {
        fn alive(&self) {}

        fn in_force(&self) {}
    }
    let begun = tokio::time::Instant::now();
    let end = async {
        while effects.borrow().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    enforcer.run(from_server, Silent, end).await.unwrap();
    let took = begun.elapsed();
    // The upper bound leaves room for a busy machine; the kernel is what ends openings.
    assert!(
        took >= Duration::from_secs(1) && took < Duration::from_secs(3),
        "{took:?}"
    );
}

#[tokio::test]
async fn a_busy_stream_holds_up_no_repair() {
    let World { enforcer, table, .. } = World::connected();
    *table.borrow_mut() = Ruleset::default();
    let (to_enforcer, from_server) = mpsc::channel(64);
    let begun = tokio::time::Instant::now();
    let end = std::future::poll_fn(|context| {
        while to_enforcer.try_send(FromServer::ReceiptsStored(0)).is_ok() {}
        context.waker().wake_by_ref();
        if begun.elapsed() < Duration::from_secs(2) && table.borrow().is_empty() {
            std::task::Poll::Pending
        } else {
            std::task::Poll::Ready(())
        }
    });
    enforcer.run(from_server, Told::default(), end).await.unwrap();
    assert!(!table.borrow().is_empty());
}

#[tokio::test]
async fn the_ruleset_is_called_in_force_only_once_it_is() {
    let mut world = World::new();
    world.faults.borrow_mut().gate = true;
    world.enforcer.rebuild();
    let World {
        enforcer,
        faults,
        clock,
        ..
    } = world;
    clock.flow();
    let (_to_enforcer, from_server) = mpsc::channel(1);
    let told = Told::default();
    let end = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(*told.0.borrow(), 0);
        faults.borrow_mut().gate = false;
        while *told.0.borrow() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let run = enforcer.run(from_server, told.clone(), end);
    tokio::time::timeout(Duration::from_secs(10), run)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(*told.0.borrow(), 1);
}
