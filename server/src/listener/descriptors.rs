//! How many connections the process has descriptors for.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::{debug, warn};

use crate::config::Limits;

/// For the database, the listeners, the runtime, the log.
const OTHERS: usize = 128;
const FEWEST: usize = 4;

/// The limits that can be kept with the open files that the system allows.
pub fn within_reach(limits: Limits) -> Limits {
    let Some(files) = raised() else {
        return limits;
    };
    let reduced = reduced(limits, files);
    if reduced != limits {
        let wanted = limits
            .connections
            .saturating_add(limits.agent_connections)
            .saturating_add(OTHERS);
        warn!(
            files,
            connections = reduced.connections,
            connections_per_address = reduced.connections_per_address,
            agent_connections = reduced.agent_connections,
            "the process may open too few files for all connections that `[limits]` allows: fewer are taken, or raise LimitNOFILE to {wanted}"
        );
    }
    reduced
}

fn reduced(limits: Limits, files: usize) -> Limits {
    let room = files.saturating_sub(OTHERS.min(files / 2));
    let wanted = limits.connections.saturating_add(limits.agent_connections);
    if wanted <= room {
        return limits;
    }
    let connections = (limits.connections.saturating_mul(room) / wanted).max(FEWEST);
    Limits {
        connections,
        connections_per_address: (limits.connections_per_address.saturating_mul(connections)
            / limits.connections.max(1))
        .max(1),
        agent_connections: room.saturating_sub(connections).max(FEWEST),
        ..limits
    }
}

/// How many files may be open, after raising that to what the system lets the process have. `None`: not known.
fn raised() -> Option<usize> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    let files = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(error) => {
            debug!(%error, "the limit of open files can't be raised");
            soft
        }
    };
    usize::try_from(files).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_descriptors_are_shared_out() {
        let limits = Limits::default();
        assert_eq!(reduced(limits, 65_536), limits);
        let few = reduced(limits, 1024);
        assert_eq!(few.connections + few.agent_connections, 1024 - OTHERS);
        // One address can't take all of it then, either.
        assert_eq!(few.connections_per_address, few.connections / 4);
        assert!(few.agent_connections > few.connections && few.connections > 100);
        let fewest = reduced(limits, 16);
        assert!(fewest.connections >= FEWEST && fewest.agent_connections >= FEWEST);
    }
}
