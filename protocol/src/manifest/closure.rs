//! What a part may point at (push step 4): nothing that a garbage collection could take from under it.

use super::{Inherited, ObjectEntry, PartManifest};
use crate::{document::invalid, key::Key, problem::Problem};

impl PartManifest {
    /// Whether an object was written in this round by the very process that wrote the part, at this attempt or, resumed, an earlier one.
    pub fn wrote(&self, object: &ObjectEntry) -> bool {
        let own = self.attempt_path();
        matches!(
            Key::parse(&object.key),
            Some(Key::Data(path, _))
                if path.attempt <= own.attempt && crate::key::AttemptPath { attempt: own.attempt, ..path } == own
        )
    }

    /// Refuses a part that points at objects which are neither its own process' of this round nor reached by the order's base, which has a
    /// `base_size` for each of these, or that claims another size for one of them; and one that inherits anything but `inheritable`, the [full form](Self::full_form) of
    /// the base's part of the same slot.
    pub fn check_closure(
        &self,
        base_size: impl Fn(&str) -> Option<u64>,
        inheritable: Option<&Inherited>,
    ) -> Result<(), Problem> {
        let own = self.attempt_path().manifest().to_string();
        if let Some(inherits) = self.delta.as_ref().map(super::Delta::inherits)
            && inheritable != Some(inherits)
        {
            return Err(invalid(
                &own,
                format!(
                    "inherits {} with digest {}, the base reaches {}",
                    inherits.key,
                    inherits.blake3,
                    inheritable
                        .map_or_else(|| "none".to_owned(), |full| format!("{} with digest {}", full.key, full.blake3))
                ),
            ));
        }
        for object in &self.objects {
            if self.wrote(object) {
                continue;
            }
            match base_size(&object.key) {
                Some(size) if size == object.size => {}
                Some(size) => {
                    return Err(invalid(
                        &own,
                        format!("says object {} has {} bytes, the base says {size}", object.key, object.size),
                    ));
                }
                None => {
                    return Err(invalid(
                        &own,
                        format!(
                            "uses object {}, which neither this process wrote in this round nor the base reaches",
                            object.key
                        ),
                    ));
                }
            }
        }
        Ok(())
    }
}
