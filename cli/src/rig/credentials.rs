//! Keys of the embedded S3 server: drawn once for each directory, worth nothing anywhere else.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// Who the coordinator and the agents are to the embedded S3 server.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Credentials {
    pub(crate) access_key_id: String,
    pub(crate) secret_access_key: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Those of an earlier run, else new ones, readable by the owner only.
    pub(crate) fn load_or_draw(path: &Path) -> Result<Self, Failure> {
        let wrong = |error: std::io::Error| {
            Failure::local("LOCAL_IO", format!("{}: {error}", path.display())).with("path", path.display())
        };
        match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| wrong(error.into())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let drawn = Self::draw();
                let text = serde_json::to_vec(&drawn).map_err(|error| wrong(error.into()))?;
                let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
                file.and_then(|mut file| file.write_all(&text)).map_err(wrong)?;
                Ok(drawn)
            }
            Err(error) => Err(wrong(error)),
        }
    }

    fn draw() -> Self {
        let text = |length: usize| -> String {
            (0..length).map(|_| char::from(rand::Rng::sample(&mut rand::rng(), rand::distr::Alphanumeric))).collect()
        };
        Self { access_key_id: format!("LOCAL{}", text(15).to_ascii_uppercase()), secret_access_key: text(40) }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_directory_keeps_its_keys_and_shows_them_to_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials.json");
        let drawn = Credentials::load_or_draw(&path).unwrap();
        assert_eq!(Credentials::load_or_draw(&path).unwrap(), drawn);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_ne!(Credentials::draw(), Credentials::draw());
        assert!(!format!("{drawn:?}").contains(&drawn.secret_access_key));
    }
}
