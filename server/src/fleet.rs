//! Which agents are connected, and who must be told when something of a machine changes.
//!
//! Only wake-ups pass through here; what has changed is in the store.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use nightlatch_core::id::{MachineId, RequestId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// All machines of which someone wants to know.
#[derive(Default)]
pub struct Fleet {
    posts: Mutex<BTreeMap<MachineId, Post>>,
    requests: Mutex<BTreeMap<RequestId, watch::Sender<()>>>,
}

struct Post {
    connection: Option<(u64, CancellationToken)>,
    connections: u64,
    assignment: watch::Sender<()>,
    news: watch::Sender<()>,
}

impl Default for Post {
    fn default() -> Self {
        let (assignment, news) = (watch::Sender::new(()), watch::Sender::new(()));
        Self {
            connection: None,
            connections: 0,
            assignment,
            news,
        }
    }
}

impl Fleet {
    /// Takes a machine's new connection. An older one is told to go.
    pub fn connect(self: &Arc<Self>, machine: MachineId) -> Presence {
        let mut posts = self.posts();
        let post = posts.entry(machine).or_default();
        post.connections += 1;
        let displaced = CancellationToken::new();
        if let Some((_, older)) = post.connection.replace((post.connections, displaced.clone())) {
            older.cancel();
        }
        post.news.send_replace(());
        let assignment = post.assignment.subscribe();
        Presence {
            fleet: self.clone(),
            machine,
            number: post.connections,
            displaced,
            assignment,
        }
    }

    pub fn is_connected(&self, machine: MachineId) -> bool {
        self.posts()
            .get(&machine)
            .is_some_and(|post| post.connection.is_some())
    }

    /// Ends the connection of a machine whose certificate no longer counts.
    pub fn cut(&self, machine: MachineId) {
        if let Some((_, connection)) = self
            .posts()
            .get(&machine)
            .and_then(|post| post.connection.as_ref())
        {
            connection.cancel();
        }
    }

    /// The machine's assignment has changed: its agent is told.
    pub fn publish(&self, machine: MachineId) {
        if let Some(post) = self.posts().get(&machine) {
            post.assignment.send_replace(());
        }
    }

    /// Something that is known of the machine has changed: whoever waits looks again.
    pub fn tell(&self, machine: MachineId) {
        if let Some(post) = self.posts().get(&machine) {
            post.news.send_replace(());
        }
    }

    /// The hosts have said something of some requests: only who waits for these looks again.
    pub fn tell_of<'r>(&self, requests: impl IntoIterator<Item = &'r RequestId>) {
        let listened_to = self.requests();
        for request in requests {
            if let Some(news) = listened_to.get(request) {
                news.send_replace(());
            }
        }
    }

    /// Hears of all that changes with a request and its machines from now on.
    pub fn listen(
        self: &Arc<Self>,
        request: RequestId,
        machines: impl IntoIterator<Item = MachineId>,
    ) -> News {
        let mut posts = self.posts();
        let listen = |machine| posts.entry(machine).or_default().news.subscribe();
        let mut receivers: Vec<_> = machines.into_iter().map(listen).collect();
        drop(posts);
        receivers.push(self.requests().entry(request).or_default().subscribe());
        News {
            fleet: self.clone(),
            request,
            receivers,
        }
    }

    fn requests(&self) -> MutexGuard<'_, BTreeMap<RequestId, watch::Sender<()>>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds no lock that a panic could leave half-done: each use is one step.
    fn posts(&self) -> MutexGuard<'_, BTreeMap<MachineId, Post>> {
        self.posts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A machine is connected for as long as this lives.
pub struct Presence {
    fleet: Arc<Fleet>,
    machine: MachineId,
    number: u64,
    /// A newer connection has come, or the certificate no longer counts.
    pub displaced: CancellationToken,
    /// Changes with the machine's assignment.
    pub assignment: watch::Receiver<()>,
}

impl Drop for Presence {
    fn drop(&mut self) {
        let mut posts = self.fleet.posts();
        if let Some(post) = posts.get_mut(&self.machine) {
            post.connection.take_if(|(number, _)| *number == self.number);
            post.news.send_replace(());
        }
    }
}

/// Changes of a request and its machines.
pub struct News {
    fleet: Arc<Fleet>,
    request: RequestId,
    receivers: Vec<watch::Receiver<()>>,
}

impl News {
    /// Returns when something of one of them has changed since the last time.
    pub async fn next(&mut self) {
        let mut changes: Vec<_> = self
            .receivers
            .iter_mut()
            .map(|receiver| Box::pin(receiver.changed()))
            .collect();
        poll_fn(|context| {
            let any = changes
                .iter_mut()
                .any(|change| change.as_mut().poll(context).is_ready());
            if any { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

impl Drop for News {
    fn drop(&mut self) {
        self.receivers.clear();
        let mut requests = self.fleet.requests();
        if requests
            .get(&self.request)
            .is_some_and(|news| news.receiver_count() == 0)
        {
            requests.remove(&self.request);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;
    use uuid::Uuid;

    const LONG: Duration = Duration::from_secs(5);

    fn machine(number: u128) -> MachineId {
        MachineId::new(Uuid::from_u128(number))
    }

    #[tokio::test]
    async fn the_newest_connection_wins_and_the_older_ones_end_changes_nothing() {
        let fleet = Arc::new(Fleet::default());
        let first = fleet.connect(machine(1));
        let second = fleet.connect(machine(1));
        timeout(LONG, first.displaced.cancelled()).await.unwrap();
        drop(first);
        assert!(fleet.is_connected(machine(1)) && !second.displaced.is_cancelled());
        drop(second);
        assert!(!fleet.is_connected(machine(1)));
    }

    #[tokio::test]
    async fn whoever_listens_hears_of_each_of_its_machines() {
        let fleet = Arc::new(Fleet::default());
        let request = |number| RequestId::new(Uuid::from_u128(number));
        let mut news = fleet.listen(request(9), [machine(1), machine(2)]);
        for number in [1, 2] {
            fleet.tell(machine(number));
            timeout(LONG, news.next()).await.unwrap();
        }
        let mut presence = fleet.connect(machine(2));
        timeout(LONG, news.next()).await.unwrap();
        fleet.publish(machine(2));
        timeout(LONG, presence.assignment.changed())
            .await
            .unwrap()
            .unwrap();
        fleet.tell_of(&[request(9)]);
        timeout(LONG, news.next()).await.unwrap();
        // What others are waiting for wakes nobody here.
        fleet.tell(machine(3));
        fleet.tell_of(&[request(8)]);
        assert!(timeout(Duration::from_millis(1), news.next()).await.is_err());
        drop(news);
        assert!(fleet.requests().is_empty());
    }
}
