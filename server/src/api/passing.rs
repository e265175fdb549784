//! Streams that anyone may open: few at once, and none that holds up the stopping.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use nightlatch_proto::error::Problem;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::{Code, Status};

use crate::listener::guests::Guest;

const MOST_STREAMS: usize = 256;
const ENDS_WITHIN: Duration = Duration::from_millis(200);

/// What such streams share.
pub struct Passing {
    streams: Arc<Semaphore>,
    stopping: CancellationToken,
}

/// Leave to have a stream.
pub(super) struct Leave {
    _permits: Option<[OwnedSemaphorePermit; 2]>,
}

impl Passing {
    pub fn new(stopping: CancellationToken) -> Self {
        Self {
            streams: Arc::new(Semaphore::new(MOST_STREAMS)),
            stopping,
        }
    }

    /// # Errors
    /// The connection, or all of them together, have too many such streams. Known callers always may.
    pub(super) fn leave(&self, guest: &Guest) -> Result<Leave, Status> {
        if guest.is_known() {
            return Ok(Leave { _permits: None });
        }
        let permits = [&guest.streams, &self.streams].map(|streams| streams.clone().try_acquire_owned());
        match permits {
            [Ok(own), Ok(shared)] => Ok(Leave {
                _permits: Some([own, shared]),
            }),
            _ => {
                let message =
                    "too many streams without a client certificate are open: close some, or show one";
                Err(Problem::new(Code::ResourceExhausted, "TOO_MANY_STREAMS", message).into())
            }
        }
    }

    /// The answer, which ends when the server stops.
    pub(super) fn bound(&self, answer: http::Response<Body>, leave: Leave) -> http::Response<Body> {
        answer.map(|body| {
            Body::new(Bounded {
                body,
                stopping: Box::pin(late(self.stopping.clone())),
                has_ended: false,
                _leave: leave,
            })
        })
    }
}

/// Some streams end by themselves when the server stops.
async fn late(stopping: CancellationToken) {
    stopping.cancelled().await;
    sleep(ENDS_WITHIN).await;
}

struct Bounded {
    body: Body,
    stopping: Pin<Box<dyn Future<Output = ()> + Send>>,
    has_ended: bool,
    _leave: Leave,
}

impl HttpBody for Bounded {
    type Data = <Body as HttpBody>::Data;
    type Error = <Body as HttpBody>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        if self.stopping.as_mut().poll(context).is_ready() {
            self.has_ended = true;
            let message = "the server is stopping: try again";
            let status = Status::from(Problem::new(Code::Unavailable, "SERVER_STOPPING", message));
            let mut trailers = HeaderMap::new();
            // A status of ASCII and encoded details makes valid headers.
            return Poll::Ready(
                status
                    .add_header(&mut trailers)
                    .ok()
                    .map(|()| Ok(Frame::trailers(trailers))),
            );
        }
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
