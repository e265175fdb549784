//! `nightlatch keys export`.

use serde::Serialize;

use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::record::KeyRecord;
use crate::settings::Connection;

#[derive(Serialize)]
struct Keys {
    keys: Vec<KeyRecord>,
}

pub(crate) async fn export(connection: &Connection, output: &Output) -> Result<Exit, Failure> {
    let client = Client::connect(connection).await?;
    let keys = client.signing_keys().await?;
    if output.is_json() {
        output.json(&Keys { keys })?;
    } else {
        for key in keys {
            output.line(key.public_key_pem.trim_end())?;
        }
    }
    Ok(Exit::Done)
}
