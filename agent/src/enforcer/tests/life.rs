//! The loop when nobody speaks: ends, repairs, marks, waking up.

use super::*;
use crate::firewall::Touch;

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
    enforcer.run(from_server, Silent, clock, end).await.unwrap();
    let took = begun.elapsed();
    // The upper bound leaves room for a busy machine; the kernel is what ends openings.
    assert!(
        took >= Duration::from_secs(1) && took < Duration::from_secs(3),
        "{took:?}"
    );
}

#[tokio::test]
async fn a_busy_stream_holds_up_no_repair() {
    let World {
        enforcer,
        table,
        clock,
        ..
    } = World::connected();
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
    enforcer
        .run(from_server, Told::default(), clock, end)
        .await
        .unwrap();
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
    let run = enforcer.run(from_server, told.clone(), clock, end);
    tokio::time::timeout(Duration::from_secs(10), run)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(*told.0.borrow(), 1);
}

/// Rings at once, as often as it is asked, each time after what `before` does.
struct Wakes<F>(F);

impl<F: FnMut()> Alarm for Wakes<F> {
    async fn ring(&mut self, _due: BootTime) -> Rang {
        tokio::task::yield_now().await;
        (self.0)();
        Rang::ClockSet
    }
}

async fn run_until(
    world: World,
    done: impl Fn(&[String]) -> bool,
    before_each_ring: impl FnMut(),
) -> Vec<String> {
    let World {
        enforcer, effects, ..
    } = world;
    let (_to_enforcer, from_server) = mpsc::channel(1);
    let end = std::future::poll_fn(|context| {
        context.waker().wake_by_ref();
        if done(&effects.borrow()) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    });
    let run = enforcer.run(from_server, Told::default(), Wakes(before_each_ring), end);
    tokio::time::timeout(Duration::from_secs(10), run)
        .await
        .unwrap()
        .unwrap();
    effects.take()
}

#[tokio::test]
async fn what_ended_while_the_host_slept_is_shut_before_anything_else() {
    let mut world = World::connected();
    world.assign(&[grant(1, ALICE, 3_600), grant(2, "192.0.2.99", 10_000)]);
    world.effects.borrow_mut().clear();
    let clock = world.clock.clone();
    let mut slept = false;
    let effects = run_until(
        world,
        |effects| effects.len() >= 3,
        || {
            if !std::mem::replace(&mut slept, true) {
                clock.sleep(Duration::from_secs(7_200));
            }
        },
    )
    .await;
    // The receipt of the end, and what else is written, follow.
    assert_eq!(effects[..2], ["slept 7200 s", "firewall with 1 openings"]);
}

#[test]
fn a_grant_goes_on_after_a_sleep_and_ends_when_it_would_have_without() {
    let mut world = World::connected();
    world.assign(&[grant(1, ALICE, 3_600)]);
    world.effects.borrow_mut().clear();
    world.clock.sleep(Duration::from_secs(3_000));
    world.enforcer.catch_up();
    assert_eq!(
        *world.effects.borrow(),
        ["slept 3000 s", "firewall with 1 openings"]
    );
    assert!(world.lets_in(ALICE));
    world.effects.borrow_mut().clear();
    world.clock.advance(Duration::from_secs(599));
    world.enforcer.catch_up();
    assert!(
        world.lets_in(ALICE) && world.effects.borrow().is_empty(),
        "it was awake"
    );
    world.after(2);
    assert!(!world.lets_in(ALICE));
}

#[test]
fn a_sleep_is_made_up_for_as_soon_as_the_firewall_answers_again() {
    let mut world = World::connected();
    world.assign(&[grant(1, ALICE, 3_600)]);
    world.faults.borrow_mut().gate = true;
    world.clock.sleep(Duration::from_secs(7_200));
    world.enforcer.catch_up();
    world.faults.borrow_mut().gate = false;
    world.effects.borrow_mut().clear();
    world.after(1);
    assert_eq!(world.effects.borrow()[0], "firewall with 0 openings");
}

#[tokio::test]
async fn setting_the_wall_clock_changes_nothing_but_is_followed_by_a_look() {
    let mut world = World::connected();
    world.assign(&[grant(1, ALICE, 3_600)]);
    world.effects.borrow_mut().clear();
    *world.table.borrow_mut() = Ruleset::default();
    let mut rings = 0;
    // The clock of the test stands still, so no look is due but the first.
    let (table, mut taken) = (world.table.clone(), false);
    let effects = run_until(
        world,
        |effects| {
            effects
                .iter()
                .filter(|effect| effect.starts_with("firewall"))
                .count()
                >= 2
        },
        || {
            rings += 1;
            if rings == 3 && !std::mem::replace(&mut taken, true) {
                *table.borrow_mut() = Ruleset::default();
            }
        },
    )
    .await;
    let repairs: Vec<_> = effects
        .iter()
        .filter(|effect| effect.starts_with("firewall"))
        .collect();
    assert_eq!(repairs, ["firewall with 1 openings", "firewall with 1 openings"]);
}

#[test]
fn a_grant_that_begins_later_opens_on_time_without_the_server() {
    let mut world = World::connected();
    world.assign(&[world::grant(1, &["22/tcp"], &[ALICE], 60, 120)]);
    world.hear(FromServer::Disconnected);
    let now = world.clock.now();
    let start = now.plus(Duration::from_secs(60));
    assert_eq!(world.enforcer.next_moment(now), Some(start));
    world.after(59);
    assert!(!world.lets_in(ALICE));
    world.after(1);
    assert!(world.lets_in(ALICE));
    world.clock.sleep(Duration::from_secs(120));
    world.enforcer.catch_up();
    assert!(!world.lets_in(ALICE) && world.table.borrow().openings().is_empty());
}

#[tokio::test]
async fn a_change_by_others_is_repaired_when_the_kernel_tells_of_it() {
    let world = World::connected();
    *world.table.borrow_mut() = Ruleset::default();
    // It has looked a moment ago, and would again in five seconds.
    let (kernel, touches) = mpsc::channel(4);
    let World {
        enforcer,
        table,
        clock,
        mut from_host,
        ..
    } = world;
    let (_to_enforcer, from_server) = mpsc::channel(1);
    let end = async {
        while table.borrow().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        *table.borrow_mut() = Ruleset::default();
        kernel.send(Touch::by("nft", 4711)).await.unwrap();
        let begun = tokio::time::Instant::now();
        while table.borrow().is_empty() {
            assert!(
                begun.elapsed() < Duration::from_secs(4),
                "the kernel was not heard"
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    enforcer
        .watching(touches)
        .run(from_server, Told::default(), clock, end)
        .await
        .unwrap();
    let said: Vec<_> = std::iter::from_fn(|| from_host.try_recv().ok()).collect();
    let told = said.iter().any(|word| {
        matches!(word, ToServer::Report(Report { code: "TABLE_REPAIRED", message, .. })
            if message.contains("nft (process 4711) deleted the table"))
    });
    assert!(told, "{said:?}");
}

#[test]
fn changes_that_come_without_a_pause_are_looked_at_ever_more_rarely_and_each_in_the_end() {
    let mut world = World::connected();
    let mut repairs = 0;
    for _ in 0..5_000 {
        world.enforcer.touched(Touch::by("nft", 4711));
        *world.table.borrow_mut() = Ruleset::default();
        world.clock.advance(Duration::from_millis(1));
        world.enforcer.pass();
        repairs += usize::from(!world.table.borrow().is_empty());
    }
    assert!((8..=14).contains(&repairs), "{repairs}");
    let told = codes(&mut world);
    assert_eq!(told.iter().filter(|code| **code == "TABLE_REPAIRED").count(), 4);
    assert_eq!(
        told.iter().filter(|code| **code == "TABLE_FOUGHT_OVER").count(),
        told.len() - 4
    );
    world.clock.advance(Duration::from_secs(1));
    world.enforcer.pass();
    assert!(!world.table.borrow().is_empty());
    assert!(world.enforcer.touch_due_at().is_none());
}
