//! A hot standby made from a base backup, for tests of fail-over.

use std::ffi::OsString;
use std::path::Path;

use super::account::Account;
use super::{Postgres, PostgresError, PostgresOptions, SUPERUSER};

impl Postgres {
    /// A standby that streams from this server, its data in `data_dir` (every parent traversable for the user `postgres`). `pg_promote()` makes a primary
    /// of it.
    pub async fn standby(&self, data_dir: &Path) -> Result<Self, PostgresError> {
        let options = PostgresOptions { data_dir: Some(data_dir.to_path_buf()), ..PostgresOptions::default() };
        let program = options.search.find()?.initdb.with_file_name("pg_basebackup");
        let account = Account::choose()?;
        account.own_directory(data_dir)?;
        // `-R` writes standby.signal and where to stream from.
        let mut args: Vec<OsString> =
            ["-R", "-X", "stream", "--checkpoint=fast", "--no-sync", "-h", "127.0.0.1", "-U", SUPERUSER, "-p"]
                .map(Into::into)
                .into();
        args.extend([self.port.to_string().into(), "-D".into(), data_dir.into()]);
        let output = account.tokio_command(&program, args).output().await.map_err(PostgresError::io(&program))?;
        if !output.status.success() {
            return Err(PostgresError::Failed {
                program,
                status: output.status.to_string(),
                output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            });
        }
        Self::start(options).await
    }
}
