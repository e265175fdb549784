//! AgentService: one task per connected agent.

mod session;

use std::sync::Arc;
use std::time::Duration;

use nightlatch_proto::pb;
use nightlatch_proto::pb::agent_service_server::AgentService;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use self::session::Session;
use super::door::{Agent, remote};
use crate::agents::Agents;
use crate::listener::Remote;

/// A connection has one session, and goes when that is over and the farewell has been read.
const LEAVES_WITHIN: Duration = Duration::from_secs(1);
/// How many messages may wait for an agent that reads slowly.
const OUTGOING: usize = 64;

/// The stream between a machine's agent and the server.
pub struct Link {
    pub agents: Arc<Agents>,
    /// So that stopping can wait for farewells.
    pub sessions: TaskTracker,
}

#[tonic::async_trait]
impl AgentService for Link {
    type ConnectStream = ReceiverStream<Result<pb::ConnectResponse, Status>>;

    async fn connect(
        &self,
        request: Request<Streaming<pb::ConnectRequest>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let Remote { address, guest, .. } = remote(&request)?;
        let agent = request.extensions().get::<Agent>().copied();
        let Agent { machine } =
            agent.ok_or_else(|| Status::unauthenticated("no machine is known to call"))?;
        let (outgoing, receiver) = mpsc::channel(OUTGOING);
        let session = Session::new(
            self.agents.clone(),
            machine,
            address.to_string(),
            request.into_inner(),
            outgoing,
        );
        // The agent sees that it is connected when it has the response, which therefore goes first.
        self.sessions.spawn(async move {
            session.run().await;
            tokio::spawn(async move {
                sleep(LEAVES_WITHIN).await;
                guest.cut.cancel();
            });
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
