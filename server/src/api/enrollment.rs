//! EnrollmentService.

use std::sync::Arc;

use nightlatch_core::signing::{PublicKey, sha256};
use nightlatch_proto::convert::InvalidField;
use nightlatch_proto::pb;
use nightlatch_proto::pb::enrollment_service_server::EnrollmentService;
use tonic::{Request, Response, Status};

use super::carried_through;
use super::door::remote;
use crate::clock::Clock;
use crate::enrolment::{Applicant, Enrolment};

const LONGEST_SECRET: usize = 128;
const LONGEST_CERTIFICATE_REQUEST: usize = 16 * 1024;

/// How a machine joins.
pub struct Enrollment {
    pub enrolment: Arc<Enrolment>,
    pub clock: Arc<dyn Clock>,
    pub root: PublicKey,
    pub agent_addresses: Vec<String>,
}

#[tonic::async_trait]
impl EnrollmentService for Enrollment {
    async fn enroll(
        &self,
        request: Request<pb::EnrollRequest>,
    ) -> Result<Response<pb::EnrollResponse>, Status> {
        let remote = remote(&request)?;
        let pb::EnrollRequest {
            secret,
            machine_name,
            certificate_request_pem,
            receipt_public_key,
        } = request.into_inner();
        for (field, text, most) in [
            ("secret", &secret, LONGEST_SECRET),
            (
                "certificate_request_pem",
                &certificate_request_pem,
                LONGEST_CERTIFICATE_REQUEST,
            ),
        ] {
            if text.is_empty() || text.len() > most {
                return Err(InvalidField::new(field, format_args!("is not 1 to {most} bytes long")).into());
            }
        }
        let applicant = Applicant {
            secret,
            name: machine_name
                .parse()
                .map_err(|error| InvalidField::new("machine_name", error))?,
            certificate_request_pem,
            receipt_key: PublicKey::from_spki(&receipt_public_key)
                .map_err(|error| InvalidField::new("receipt_public_key", error))?,
            address: remote.address,
        };
        let (enrolment, now) = (self.enrolment.clone(), self.clock.now());
        let (expecting, who) = (enrolment.clone(), applicant.clone());
        carried_through(async move { expecting.expects(&who, now).await }).await?;
        // The store may take longer than anyone is let stay unknown.
        remote.guest.shows(sha256(applicant.secret.as_bytes()));
        remote.guest.is_recognised();
        let enrolled = carried_through(async move { enrolment.enroll(applicant, now).await }).await?;
        Ok(Response::new(pb::EnrollResponse {
            machine_id: enrolled.id.to_string(),
            machine_name: enrolled.name.to_string(),
            certificate_pem: enrolled.certificate_pem,
            ca_certificate_pem: self.enrolment.ca.pem().to_owned(),
            root_public_key: self.root.to_spki(),
            installation_id: self.enrolment.installation.to_string(),
            agent_addresses: self.agent_addresses.clone(),
        }))
    }
}
