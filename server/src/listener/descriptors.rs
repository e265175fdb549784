//! How many connections the process has descriptors for.

use std::fs;

use tracing::warn;

use crate::config::Limits;

/// For the database, the listeners, the runtime, the log.
const OTHERS: usize = 128;
const FEWEST: usize = 4;

/// The limits that can be kept with the open files that the system allows.
pub fn within_reach(limits: Limits) -> Limits {
    let Some(files) = most_open_files() else {
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
        agent_connections: room.saturating_sub(connections).max(FEWEST),
        ..limits
    }
}

/// `None`: unlimited, or not known.
fn most_open_files() -> Option<usize> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
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
        assert!(few.agent_connections > few.connections && few.connections > 100);
        let fewest = reduced(limits, 16);
        assert!(fewest.connections >= FEWEST && fewest.agent_connections >= FEWEST);
    }
}
