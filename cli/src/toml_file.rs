//! TOML that people write, with errors that name key and line.

use serde::de::DeserializeOwned;

/// # Errors
/// On one line: where, and what can't be meant.
pub(crate) fn from_str<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let described = |key: Option<String>, error: &toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map(|before| format!("line {}: ", before.matches('\n').count() + 1));
        let key = key.map(|key| format!("`{key}`: "));
        let message: Vec<&str> = error.message().lines().map(str::trim).collect();
        [line, key, Some(message.join(" "))]
            .into_iter()
            .flatten()
            .collect()
    };
    let document = toml::Deserializer::parse(text).map_err(|error| described(None, &error))?;
    serde_path_to_error::deserialize(document).map_err(|error| {
        let is_within = error.path().iter().next().is_some();
        described(is_within.then(|| error.path().to_string()), error.inner())
    })
}
