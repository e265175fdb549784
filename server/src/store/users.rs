//! People and programs: what their certificate is and which roles they have.

use std::collections::BTreeSet;

use nightlatch_core::id::Subject;
use nightlatch_core::rights::Role;
use nightlatch_core::time::Timestamp;

use super::StoreError;
use super::connection::{Connection, sql};
use super::row::{json, text, to_json};

pub struct User {
    pub roles: BTreeSet<Role>,
    pub fingerprint: String,
}

/// An earlier certificate of the same name no longer counts.
pub async fn put(
    connection: &mut Connection,
    subject: &Subject,
    user: &User,
    now: Timestamp,
) -> Result<(), StoreError> {
    let User { roles, fingerprint } = user;
    sql(
        "INSERT INTO users (subject, roles, fingerprint, issued_at) VALUES ($1, $2, $3, $4)
         ON CONFLICT (subject) DO UPDATE SET roles = $2, fingerprint = $3, issued_at = $4",
    )
    .bind(subject.as_str())
    .bind(to_json(roles))
    .bind(fingerprint)
    .bind(now.micros())
    .write(connection)
    .await?;
    Ok(())
}

pub async fn find(connection: &mut Connection, subject: &Subject) -> Result<Option<User>, StoreError> {
    let row = sql("SELECT roles, fingerprint FROM users WHERE subject = $1")
        .bind(subject.as_str())
        .row(connection)
        .await?;
    row.map(|row| {
        Ok(User {
            roles: json(&row, "roles")?,
            fingerprint: text(&row, "fingerprint")?,
        })
    })
    .transpose()
}
