//! Small files that people name: regular ones, read up to a limit.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

/// # Errors
/// What can't be read, isn't a regular file, or is larger than `most` bytes.
pub(crate) fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    // Asked before it is opened: opening a pipe waits for whoever writes into it.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?
        .take(most.saturating_add(1))
        .read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length <= most) {
        Ok(bytes)
    } else {
        Err(io::Error::other(format!("it is larger than {} KiB", most / 1024)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_of_some_size_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for (length, fits) in [(2048, true), (2049, false)] {
            fs::write(&path, vec![b'x'; length]).unwrap();
            assert_eq!(read(&path, 2048).is_ok(), fits, "{length}");
        }
        for odd in [folder.path(), Path::new("/dev/zero")] {
            let error = read(odd, 2048).unwrap_err().to_string();
            assert_eq!(error, "it is not a regular file");
        }
    }
}
