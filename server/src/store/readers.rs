//! Connections that read. They never wait for changes.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use sqlx::any::AnyConnectOptions;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::connection::Connection;
use super::{PATIENCE, READERS, StoreError};

/// A pool that would ask after each use whether the connection still answers costs a trip each time.
#[derive(Clone)]
pub(super) struct Readers {
    free: Arc<Mutex<Vec<Connection>>>,
    places: Arc<Semaphore>,
}

/// A connection for reading, given back when it is dropped.
pub struct Reader {
    /// `None`: given back.
    connection: Option<Connection>,
    readers: Readers,
    _place: OwnedSemaphorePermit,
}

impl Readers {
    pub(super) async fn open(options: &AnyConnectOptions) -> Result<Self, sqlx::Error> {
        let mut free = Vec::new();
        for _ in 0..READERS {
            free.push(Connection::open(options).await?);
        }
        Ok(Self {
            places: Arc::new(Semaphore::new(free.len())),
            free: Arc::new(Mutex::new(free)),
        })
    }

    pub(super) async fn one(&self) -> Result<Reader, StoreError> {
        let place = timeout(PATIENCE, self.places.clone().acquire_owned()).await;
        let place = place.map_err(|_elapsed| StoreError::Busy(PATIENCE))?;
        let place = place.map_err(|_closed| StoreError::Closed)?;
        let connection = self.free(|free| free.pop()).ok_or(StoreError::Closed)?;
        Ok(Reader {
            connection: Some(connection),
            readers: self.clone(),
            _place: place,
        })
    }

    /// Waits until nobody reads, and closes all.
    pub(super) async fn close(&self) {
        let all = u32::try_from(READERS).unwrap_or(u32::MAX);
        let all = self.places.acquire_many(all).await;
        self.places.close();
        drop(all);
        for connection in self.free(std::mem::take) {
            // Nothing was written that could be lost.
            connection.close().await.unwrap_or_default();
        }
    }

    fn free<T>(&self, with: impl FnOnce(&mut Vec<Connection>) -> T) -> T {
        with(&mut self.free.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[expect(
    clippy::expect_used,
    reason = "a reader has its connection until it is dropped"
)]
impl Deref for Reader {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection.as_ref().expect("a reader has a connection")
    }
}

#[expect(
    clippy::expect_used,
    reason = "a reader has its connection until it is dropped"
)]
impl DerefMut for Reader {
    fn deref_mut(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("a reader has a connection")
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.readers.free(|free| free.push(connection));
        }
    }
}
