//! Backups of the twin, and a database that was lost and came back as one of them.

use super::{MemoryDatabase, tables::Tables};
use crate::store::DatabaseIdentity;

/// Every row as it was at one time.
#[derive(Clone, Debug)]
pub struct Backup(Tables);

impl MemoryDatabase {
    /// What a backup or a standby server has.
    pub fn backup(&self) -> Backup {
        Backup(self.tables().clone())
    }

    /// The database is lost, and what goes on is that backup, as another server or timeline has it.
    pub fn restore(&self, backup: &Backup, identity: DatabaseIdentity) {
        let mut tables = self.tables();
        let losses = tables.losses.saturating_add(1);
        *tables = Tables { identity, losses, ..backup.0.clone() };
    }
}
