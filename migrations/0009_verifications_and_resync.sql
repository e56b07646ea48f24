-- What verifications found, the budget that lets checkpoints be re-read all the time, and databases that are behind their buckets.

CREATE TABLE verifications (
    id            uuid PRIMARY KEY,
    pipeline_id   uuid NOT NULL REFERENCES pipelines (id),
    generation    bigint NOT NULL CHECK (generation > 0),
    seq           bigint NOT NULL CHECK (seq > 0),
    checkpoint_id uuid NOT NULL,
    digest        text NOT NULL,
    scope         text NOT NULL CHECK (scope IN ('all', 'structure')),
    rolling       boolean NOT NULL DEFAULT false,
    outcome       text NOT NULL CHECK (outcome IN ('intact', 'damaged')),
    bytes         bigint NOT NULL CHECK (bytes >= 0),
    problems      jsonb NOT NULL,
    mark_bytes    bytea,
    marked_at     timestamptz,
    mark_problem  jsonb,
    mark_lease    timestamptz,
    actor         text NOT NULL,
    trace_id      text,
    started_at    timestamptz NOT NULL,
    ended_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT verifications_outcome CHECK ((outcome = 'damaged') = (jsonb_array_length(problems) > 0)),
    CONSTRAINT verifications_mark CHECK (marked_at IS NULL OR mark_bytes IS NOT NULL)
) WITH (fillfactor = 90);
CREATE INDEX verifications_by_checkpoint ON verifications (pipeline_id, checkpoint_id, ended_at DESC);
CREATE INDEX verifications_owed ON verifications (id) WHERE mark_bytes IS NOT NULL AND marked_at IS NULL;

COMMENT ON TABLE verifications IS 'one reading of one checkpoint and what it found; never deleted';
COMMENT ON COLUMN verifications.id IS 'drawn for this reading';
COMMENT ON COLUMN verifications.pipeline_id IS 'in whose location it was read';
COMMENT ON COLUMN verifications.generation IS 'place of the commit';
COMMENT ON COLUMN verifications.seq IS 'place of the commit in its generation';
COMMENT ON COLUMN verifications.checkpoint_id IS 'the push that made it';
COMMENT ON COLUMN verifications.digest IS 'BLAKE3 of the commit''s bytes, as they were read';
COMMENT ON COLUMN verifications.scope IS 'all: every byte was read; structure: documents were, and that every object is there';
COMMENT ON COLUMN verifications.rolling IS 'read within the daily budget, not asked for by a caller';
COMMENT ON COLUMN verifications.outcome IS 'intact, or damaged';
COMMENT ON COLUMN verifications.bytes IS 'of files that were re-read';
COMMENT ON COLUMN verifications.problems IS 'what does not hold, a problem for each file or document; at most 100';
COMMENT ON COLUMN verifications.mark_bytes IS 'exact bytes of the damage mark, stored before they are put; null: intact, or not ours to mark';
COMMENT ON COLUMN verifications.marked_at IS 'when a mark was known to stand in the bucket';
COMMENT ON COLUMN verifications.mark_problem IS 'why it does not stand yet';
COMMENT ON COLUMN verifications.mark_lease IS 'no other replica puts the mark before this time of the database';
COMMENT ON COLUMN verifications.actor IS 'who asked, or the replica';
COMMENT ON COLUMN verifications.trace_id IS 'W3C trace id of the request';
COMMENT ON COLUMN verifications.started_at IS 'when reading began';
COMMENT ON COLUMN verifications.ended_at IS 'when the result was known, database clock';

CREATE TABLE verify_budget (
    singleton   boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    allowance   jsonb,
    under_way   jsonb,
    version     bigint NOT NULL DEFAULT 0,
    lease_owner text,
    lease_until timestamptz,
    updated_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO verify_budget DEFAULT VALUES;

COMMENT ON TABLE verify_budget IS 'one row: how much may be re-read now, and which checkpoint is';
COMMENT ON COLUMN verify_budget.singleton IS 'holds the table to one row';
COMMENT ON COLUMN verify_budget.allowance IS 'bytes that were left, and when; grows with time';
COMMENT ON COLUMN verify_budget.under_way IS 'the checkpoint that is being read, from where on, and what was found so far';
COMMENT ON COLUMN verify_budget.version IS 'rises with each claim and each step; a write names the one it read';
COMMENT ON COLUMN verify_budget.lease_owner IS 'the replica that reads';
COMMENT ON COLUMN verify_budget.lease_until IS 'no other one reads before this time of the database';
COMMENT ON COLUMN verify_budget.updated_at IS 'last change, database clock';

CREATE TABLE verify_turns (
    pipeline_id uuid PRIMARY KEY REFERENCES pipelines (id),
    looked_at   timestamptz NOT NULL
);

COMMENT ON TABLE verify_turns IS 'when each pipeline last had its turn to be re-read';
COMMENT ON COLUMN verify_turns.pipeline_id IS 'whose';
COMMENT ON COLUMN verify_turns.looked_at IS 'database clock';

ALTER TABLE pipelines ADD COLUMN behind_at timestamptz;
ALTER TABLE pipelines ADD COLUMN behind_problem jsonb;
COMMENT ON COLUMN pipelines.behind_at IS 'when it was found that the bucket holds what this database does not know; admits no round and collects nothing until a take-over (resync)';
COMMENT ON COLUMN pipelines.behind_problem IS 'what was found';

ALTER TABLE pipelines ADD COLUMN lost_at timestamptz;
ALTER TABLE pipelines ADD COLUMN lost_problem jsonb;
COMMENT ON COLUMN pipelines.lost_at IS 'when it was found that the bucket does not hold what this database knows as committed';
COMMENT ON COLUMN pipelines.lost_problem IS 'what is gone';

-- A resync is a take-over, and so is an activation: which purposes and phases there are, the code says; lists in this place would tie the order in which migrations are written.
ALTER TABLE take_overs DROP CONSTRAINT take_overs_purpose_check;
ALTER TABLE take_overs ADD CONSTRAINT take_overs_purpose_check CHECK (purpose ~ '^[a-z]+(_[a-z]+)*$' AND length(purpose) <= 64);
COMMENT ON COLUMN take_overs.purpose IS 'take_over: asked for, whoever owns the location; resync: the own location again, since the database may have lost rows';

ALTER TABLE audit_events DROP CONSTRAINT audit_events_event_check;
ALTER TABLE audit_events ADD CONSTRAINT audit_events_event_check CHECK (event ~ '^[a-z]+(_[a-z]+)*$' AND length(event) <= 64);
