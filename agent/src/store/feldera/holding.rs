//! Holding a checkpoint while it is read.

use lockstep_protocol::{id::Step, manifest::RelativePath};

use super::{
    CatalogEntry, FelderaStore, Trouble, damaged,
    dependencies::{self, Dependencies, state_path},
    layout::DEPENDENCIES,
    meta::StoreMeta,
    walk,
};
use crate::store::{
    hold::{Held, Hold},
    local_io::exists,
};

impl FelderaStore {
    /// Links the folder and then each batch that it needs. `Gone` on the way: either the engine collected the checkpoint, or it is damaged; the catalog knows.
    pub(super) fn try_hold(&self, entry: &CatalogEntry, step: Step) -> Result<Held, Trouble> {
        let id = entry.uuid;
        let folder = self.root.folder(id);
        let mut hold = Hold::begin(&self.root.holds(), self.holding)?;
        for file in walk::regular_files(&folder)? {
            hold.keep(RelativePath::new(format!("{id}/{}", file.path))?, &folder.join(file.path.as_str()))?;
        }
        let named = RelativePath::new(format!("{id}/{DEPENDENCIES}"))?;
        let source = self.root.at(&named).display().to_string();
        let bytes = hold.read(&named, dependencies::MAX_BYTES).map_err(|trouble| self.in_root(trouble, &named))?;
        let needs = Dependencies::parse(&source, id, &bytes)?;
        for batch in needs.batches {
            let original = self.root.at(&batch);
            hold.keep(batch, &original)?;
        }
        if let Some(missing) = needs.required.iter().find(|path| !hold.has(path.as_str())) {
            return Err(Trouble::Gone(self.root.at(missing)));
        }
        let root_state_json = exists(&self.root.state())?;
        if root_state_json {
            self.keep_state(entry, &mut hold)?;
        }
        let checkpoint = entry.describe(step, hold.bytes(), hold.len());
        let meta = StoreMeta { entry: entry.verbatim.clone(), root_state_json };
        Ok(hold.finish(checkpoint, meta.encode()))
    }

    /// A root with `state.json` is a controller's, and it can't start from a checkpoint without one. Older controllers write it after the catalog, so it may
    /// still come.
    fn keep_state(&self, entry: &CatalogEntry, hold: &mut Hold) -> Result<(), Trouble> {
        let path = state_path(entry.uuid)?;
        let original = self.root.at(&path);
        let came = self.state_wait.until(|| {
            if hold.has(path.as_str()) {
                return Ok(Some(()));
            }
            match hold.keep(path.clone(), &original) {
                Ok(()) => Ok(Some(())),
                Err(Trouble::Gone(_)) if exists(&self.root.folder(entry.uuid))? => Ok(None),
                Err(trouble) => Err(trouble),
            }
        })?;
        came.ok_or_else(|| {
            let waited = self.state_wait.at_most();
            Trouble::Problem(
                damaged(
                    entry.uuid,
                    &original,
                    &format!("is missing after {waited:?}, though the root has a state.json"),
                )
                .with("waited_ms", waited.as_millis()),
            )
        })
    }

    /// A path below the hold folder says nothing to anybody.
    fn in_root(&self, trouble: Trouble, path: &RelativePath) -> Trouble {
        match trouble {
            Trouble::Gone(_) => Trouble::Gone(self.root.at(path)),
            problem @ Trouble::Problem(_) => problem,
        }
    }
}
