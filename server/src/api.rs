//! The gRPC services: parse, one call, reply.

pub mod access;
pub mod agent;
pub mod audit;
pub mod door;
pub mod enrollment;
pub mod machine;
pub mod passing;
pub mod permissions;
mod shown;
mod status;

use nightlatch_proto::convert::InvalidField;
use nightlatch_proto::convert::resource::MachineRef;
use nightlatch_proto::error::Problem;
use tonic::{Code, Status};

use crate::refusal::Refusal;
use crate::store::machines::{self, Machine};
use crate::store::{Store, page};

/// The longest message that is read, in bytes.
pub const LONGEST_MESSAGE: usize = 256 * 1024;

/// Carries a change through even if whoever asked goes away: what is recorded must also be published.
async fn carried_through<T: Send + 'static>(
    change: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> Result<T, Status> {
    match tokio::spawn(change).await {
        Ok(done) => done.map_err(Status::from),
        Err(failed) => {
            tracing::error!(error = %failed, "a call was not carried through");
            Err(Problem::new(Code::Internal, "INTERNAL", "the server has failed at this call").into())
        }
    }
}

/// How many entries a page has.
fn page_size(asked: i32) -> Result<i64, InvalidField> {
    match i64::from(asked) {
        0 => Ok(page::DEFAULT_SIZE),
        size @ 1.. => Ok(size.min(page::LARGEST_SIZE)),
        size => {
            let reason = format_args!("{size} is negative: write 0 to {}", page::LARGEST_SIZE);
            Err(InvalidField::new("page_size", reason))
        }
    }
}

fn page_token<K: std::str::FromStr>(list: &str, token: &str) -> Result<Option<K>, InvalidField> {
    page::read_token(list, token).map_err(|error| InvalidField::new("page_token", error))
}

/// A machine that a call names, also a retired one if by its id.
async fn named_machine(store: &Store, field: &str, which: MachineRef) -> Result<Machine, Refusal> {
    let mut connection = store.read().await?;
    let machine = machines::find(&mut connection, &which).await?;
    machine.ok_or_else(|| Refusal::UnknownMachine {
        field: field.to_owned(),
        machine: which,
    })
}
