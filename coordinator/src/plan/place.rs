//! One location, read with patience: what may pass by itself is asked again for a while, then the problem stands with operation, bucket, key, HTTP
//! status and S3 code.

use std::{sync::Arc, time::Duration};

use lockstep_bucket::{
    Access, Checkpoint, DecisionFound, Newest, ObjectStore, Selector, decide, fences, find, newest, parts,
};
use lockstep_protocol::{
    commit::{CommitDocument, CommitPart, CommitRef, DecisionObject},
    digest::Digest,
    document::MAX_DOCUMENT_BYTES,
    fence::{Fence, Successor},
    id::{Generation, Seq},
    key::Key,
    location::Location,
    manifest::{Inherited, PartDocument, PartManifest},
    problem::{Problem, Reason},
    round::Round,
    spec::PullSelector,
};

use super::{
    PlanContext, Right,
    known::{Known, Reach},
    losses::Look,
    patiently,
};

/// A location that is open for reading; its own one may get the base of a fence.
#[derive(Clone, Debug)]
pub struct Place {
    bucket: Arc<dyn ObjectStore>,
    patience: Duration,
    right: Right,
    known: Arc<Known>,
}

/// Whether a push may reuse the objects of its base.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Base {
    /// Its document is the very one, neither retired nor marked damaged.
    Usable(Arc<CommitDocument>),
    /// Proven to be of no use: everything is sent in full, which also heals what is damaged.
    Unusable(Problem),
}

impl Base {
    /// Why it can't be used.
    pub fn problem(self) -> Option<Problem> {
        match self {
            Self::Usable(_) => None,
            Self::Unusable(problem) => Some(problem),
        }
    }
}

impl Place {
    /// Opens a location; no request is made yet.
    pub async fn open(context: &PlanContext, location: &Location, right: Right) -> Result<Self, Problem> {
        let bucket = context.connector.connect(location).await?;
        let known = Arc::clone(&context.known);
        Ok(Self { bucket, patience: context.options.store_patience, right, known })
    }

    /// The same place for what is asked by the way: nobody insists on more than the connector does (`Insisting`).
    #[must_use]
    pub fn impatient(&self) -> Self {
        Self { patience: Duration::ZERO, ..self.clone() }
    }

    /// The store behind it.
    pub fn bucket(&self) -> &dyn ObjectStore {
        self.bucket.as_ref()
    }

    /// What was read here before.
    pub(super) fn known(&self) -> &Known {
        &self.known
    }

    /// `fences/<g>.json`, if it stands.
    pub async fn fence(&self, generation: Generation) -> Result<Option<Fence>, Problem> {
        let key = Key::Fence(generation).to_string();
        patiently(self.patience, async || {
            let found = self.bucket.get(&key, MAX_DOCUMENT_BYTES).await.or_problem();
            found.and_parse(|bytes| Fence::parse(&key, &bytes)).known()
        })
        .await
    }

    /// What follows a generation. A fence without its base is finished where that is permitted (F3).
    pub async fn successor(&self, generation: Generation) -> Result<Successor, Problem> {
        patiently(self.patience, async || match decide::successor(self.bucket(), generation).await? {
            Successor::FenceOnly if self.right == Right::FinishBase => {
                fences::finish_base(self.bucket(), generation.next()).await.map(Successor::Base)
            }
            known => Ok(known),
        })
        .await
    }

    /// What stands at a decision key, if anything ever did.
    pub async fn decision(&self, generation: Generation, seq: Seq) -> Result<Option<DecisionFound>, Problem> {
        patiently(self.patience, async || decide::read_decision(self.bucket(), generation, seq).await.known()).await
    }

    /// The same for those who read decisions and tombstones only.
    pub fn look(&self) -> Look<'_> {
        Look { bucket: self.bucket(), patience: self.patience }
    }

    const fn access(&self) -> Access {
        match self.right {
            Right::Read => Access::ReadOnly,
            Right::FinishBase => Access::Own,
        }
    }

    /// The newest commits (F2), for whoever adds to them: damage of what there is doesn't keep a push from making a good one.
    pub async fn newest(&self) -> Result<Newest, Problem> {
        patiently(self.patience, async || newest(self.bucket(), self.access()).await).await
    }

    /// The commit that a selector means; none: proven absent.
    pub async fn find(&self, selector: &PullSelector) -> Result<Option<Checkpoint>, Problem> {
        let selector = match *selector {
            PullSelector::Latest => Selector::Latest,
            PullSelector::Step(step) => Selector::Step(step),
            PullSelector::Checkpoint(round) => Selector::Round(round),
            PullSelector::Time(time) => Selector::Time(time),
        };
        patiently(self.patience, async || find(self.bucket(), selector, self.access()).await.known()).await
    }

    /// The base of a push, and whether its objects may be reused.
    pub async fn base(&self, base: &CommitRef) -> Result<Base, Problem> {
        let unusable = |why: &str| {
            let problem = Problem::new(
                Reason::CheckpointDamaged,
                format!("base {}-{} in {} {why}", base.generation, base.seq, self.bucket.location()),
            );
            Base::Unusable(
                problem
                    .with("generation", base.generation)
                    .with("seq", base.seq)
                    .with("location", self.bucket.location())
                    .with("why", why),
            )
        };
        let document = match self.decision(base.generation, base.seq).await? {
            None => return Ok(unusable("is gone")),
            Some(DecisionFound::Retired) => return Ok(unusable("is retired")),
            Some(DecisionFound::Unreadable(_, problem)) => {
                return Ok(unusable(&format!("can't be read: {}", problem.message)));
            }
            Some(DecisionFound::Decision(_, digest)) if digest != base.digest => {
                return Ok(unusable("holds other bytes than the database says"));
            }
            Some(DecisionFound::Decision(DecisionObject::Abort(_), _)) => return Ok(unusable("is an abort record")),
            Some(DecisionFound::Decision(DecisionObject::Commit(document), _)) => document,
        };
        let mark = Key::Damaged(base.generation, base.seq).to_string();
        let damaged =
            patiently(self.patience, async || self.bucket.get(&mark, MAX_DOCUMENT_BYTES).await.or_problem().known());
        if damaged.await?.is_some() {
            return Ok(unusable("is marked damaged"));
        }
        let document = Arc::from(document);
        // Its bytes have the digest that the database says; one value has one spelling.
        let bytes = CommitDocument::encode(&document);
        if Digest::of(&bytes) == base.digest {
            self.known.learn_commit(&bytes, Arc::clone(&document));
        }
        Ok(Base::Usable(document))
    }

    /// One part, whole, compared with what the commit or the report says of it. What it inherits is read only if it is not known.
    pub async fn part(&self, part: &CommitPart) -> Result<Arc<PartManifest>, Problem> {
        self.whole(part).await.map_err(|problem| problem.with("host_idx", part.host_idx))
    }

    async fn whole(&self, part: &CommitPart) -> Result<Arc<PartManifest>, Problem> {
        let name = parts::named_by(part);
        let document = patiently(self.patience, async || parts::document(self.bucket(), &name).await).await?;
        let whole = match document {
            PartDocument::Full(manifest) => {
                let manifest = Arc::new(manifest);
                self.known.learn_full(name.blake3, &manifest);
                manifest
            }
            PartDocument::Delta(delta) => {
                let full = self.full(delta.inherits()).await?;
                Arc::new(delta.resolve(&full)?)
            }
        };
        parts::compare(self.bucket.location(), part, &whole)?;
        self.known.learn_reach(name.blake3, &Arc::new(Reach::of(part, &whole)));
        Ok(whole)
    }

    async fn full(&self, name: &Inherited) -> Result<Arc<PartManifest>, Problem> {
        if let Some(known) = self.known.full(&name.blake3) {
            return Ok(known);
        }
        let read = patiently(self.patience, async || parts::full(self.bucket(), name).await).await?;
        let full = Arc::new(read);
        self.known.learn_full(name.blake3, &full);
        Ok(full)
    }

    /// What a part of a base lets the parts of a push use.
    pub async fn reach(&self, part: &CommitPart) -> Result<Arc<Reach>, Problem> {
        if let Some(known) = self.known.reach(&part.manifest_blake3) {
            return Ok(known);
        }
        let manifest = self.part(part).await?;
        Ok(Arc::new(Reach::of(part, &manifest)))
    }
}

/// `LOCATION_OWNED`, naming both pipelines.
pub(super) fn other_owner(round: &Round, fence: &Fence) -> Problem {
    fences::location_owned(&round.location, round.pipeline, &round.pipeline_name, fence)
}
