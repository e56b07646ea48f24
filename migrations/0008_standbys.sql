-- Standbys: what each follows, when it is looked at next, and how far it is behind.

CREATE TABLE standbys (
    pipeline_id   uuid PRIMARY KEY REFERENCES pipelines (id),
    pinned        uuid,
    stopped_at    timestamptz,
    due_at        timestamptz NOT NULL,
    failures      integer NOT NULL DEFAULT 0 CHECK (failures >= 0),
    problem       jsonb,
    seen_round_id uuid,
    sighting      jsonb NOT NULL DEFAULT '{}',
    version       bigint NOT NULL DEFAULT 0,
    looking_until timestamptz,
    updated_at    timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 70);
CREATE INDEX standbys_due ON standbys (due_at);

COMMENT ON TABLE standbys IS 'one row for each pipeline that ever was a standby';
COMMENT ON COLUMN standbys.pipeline_id IS 'whose';
COMMENT ON COLUMN standbys.pinned IS 'the one checkpoint it stays on; none: the newest';
COMMENT ON COLUMN standbys.stopped_at IS 'it was told not to follow; none: it follows as long as it is a standby';
COMMENT ON COLUMN standbys.due_at IS 'no replica looks at it before this time of the database';
COMMENT ON COLUMN standbys.failures IS 'looks and pulls that failed since one succeeded';
COMMENT ON COLUMN standbys.problem IS 'why the last of them failed';
COMMENT ON COLUMN standbys.seen_round_id IS 'the ended pull that due_at and failures reckon with';
COMMENT ON COLUMN standbys.sighting IS 'what the last look saw: the location''s newest checkpoint, what the hosts hold, how far that is behind';
COMMENT ON COLUMN standbys.version IS 'rises with each look, start and stop; a write names the one it looked at';
COMMENT ON COLUMN standbys.looking_until IS 'a replica looks at it until then, unless it is done sooner';
COMMENT ON COLUMN standbys.updated_at IS 'last change, database clock';

COMMENT ON COLUMN rounds.periodic IS 'asked for by the pipeline itself, not by a caller: push, by its push_interval; pull, as a standby that follows';

-- Which sorts of events there are, docs/audit.md lists; a list in this place would tie the order in which migrations are written.
ALTER TABLE audit_events DROP CONSTRAINT audit_events_event_check;
ALTER TABLE audit_events ADD CONSTRAINT audit_events_event_check CHECK (event ~ '^[a-z]+(_[a-z]+)*$' AND length(event) <= 64);

-- An activation is a take-over with a pull before its fence and one after its base. Which purposes and phases there are, the code says, for the same reason.
ALTER TABLE take_overs ADD COLUMN warm jsonb;
COMMENT ON COLUMN take_overs.warm IS 'activation: the commit that the warm pull brought; none: nothing was there';
ALTER TABLE take_overs DROP CONSTRAINT take_overs_purpose_check;
ALTER TABLE take_overs ADD CONSTRAINT take_overs_purpose_check CHECK (purpose ~ '^[a-z]+(_[a-z]+)*$' AND length(purpose) <= 64);
COMMENT ON COLUMN take_overs.purpose IS 'take_over: asked for, whoever owns the location; activate: a standby becomes the owner';
ALTER TABLE take_overs DROP CONSTRAINT take_overs_phase_check;
ALTER TABLE take_overs ADD CONSTRAINT take_overs_phase_check CHECK (phase IN (
    'warming', 'preparing', 'fencing', 'basing', 'adopting', 'pulling', 'done', 'failed', 'cancelled'));
COMMENT ON COLUMN take_overs.phase IS 'preparing, fencing, basing, adopting, then done; failed, cancelled; an activation begins with warming and has pulling before done';
ALTER TABLE take_overs DROP CONSTRAINT take_overs_bytes;
ALTER TABLE take_overs ADD CONSTRAINT take_overs_bytes
    CHECK (phase NOT IN ('fencing', 'basing', 'adopting', 'pulling', 'done') OR (fence_bytes IS NOT NULL AND generation IS NOT NULL));

COMMENT ON COLUMN pipelines.claim IS 'claiming: the fence is being put; owned: it stands; refused: it will not, claim_problem says why; standby: owns nothing by design, or, with a generation, is fenced off for it and waits for its last pull';

-- An older version can't read an activation.
UPDATE schema_compatibility SET oldest_reader = 8 WHERE oldest_reader < 8;
