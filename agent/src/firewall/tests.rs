//! Against a kernel that answers no question.

use super::*;
use nightlatch_core::port::{PortKey, Protocol};
use nix::sched::{CloneFlags, unshare};

#[test]
fn a_table_that_can_not_be_read_is_made_anew_all_the_same() {
    let checked = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let now = BootTime::new(Duration::ZERO);
        let port = |port| PortKey {
            protocol: Protocol::Tcp,
            port,
        };
        let guarding = |ports: &[u16]| {
            let guarded = ports.iter().copied().map(port).collect();
            Ruleset::new(guarded, BTreeSet::new(), Duration::ZERO)
        };
        let mut firewall = Firewall::open().unwrap();
        firewall.apply(&guarding(&[22]), now).unwrap();
        firewall.netlink.answers_no_question = true;
        assert!(firewall.is_in_place(now).is_err());
        let wanted = guarding(&[22, 3389]);
        assert_eq!(firewall.rebuild(&wanted, now).unwrap(), Applied::Rebuilt);
        firewall.netlink.answers_no_question = false;
        assert!(firewall.is_in_place(now).unwrap());
        assert_eq!(firewall.read().unwrap().unwrap().guarded, *wanted.guarded());
    });
    checked.join().unwrap();
}
