-- Pins, retirements and collections of garbage: rows that dispatch drives, and the commits that are retired.

CREATE TABLE upkeep (
    id            uuid PRIMARY KEY,
    pipeline_id   uuid NOT NULL REFERENCES pipelines (id),
    pipeline_name text NOT NULL,
    kind          text NOT NULL CHECK (kind IN ('pin', 'unpin', 'retire', 'collect')),
    work          jsonb NOT NULL,
    location      jsonb NOT NULL,
    generation    bigint NOT NULL CHECK (generation > 0),
    commit_generation bigint CHECK (commit_generation > 0),
    commit_seq    bigint CHECK (commit_seq > 0),
    version       bigint NOT NULL DEFAULT 1,
    term          bigint NOT NULL DEFAULT 0,
    lease_owner   text,
    lease_until   timestamptz,
    phase         text NOT NULL CHECK (phase IN ('waiting', 'done', 'failed')),
    tally         jsonb NOT NULL,
    problem       jsonb,
    tries         integer NOT NULL DEFAULT 0,
    retry_at      timestamptz,
    retry         jsonb NOT NULL,
    request_id    uuid,
    actor         text NOT NULL,
    trace_id      text,
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at      timestamptz,
    CONSTRAINT upkeep_request UNIQUE (pipeline_id, request_id),
    CONSTRAINT upkeep_ended CHECK ((ended_at IS NULL) = (phase = 'waiting')),
    CONSTRAINT upkeep_commit CHECK ((kind IN ('pin', 'retire')) = (commit_generation IS NOT NULL AND commit_seq IS NOT NULL))
) WITH (fillfactor = 70);
CREATE UNIQUE INDEX upkeep_one_collection ON upkeep (pipeline_id) WHERE kind = 'collect' AND ended_at IS NULL;
CREATE INDEX upkeep_waiting ON upkeep (created_at) WHERE ended_at IS NULL;
CREATE INDEX upkeep_by_pipeline ON upkeep (pipeline_id, kind, created_at DESC);

COMMENT ON TABLE upkeep IS 'one piece of upkeep of one pipeline''s location; what ended 30 days ago is removed when something new is admitted';
COMMENT ON COLUMN upkeep.id IS 'drawn at admission';
COMMENT ON COLUMN upkeep.pipeline_id IS 'whose location';
COMMENT ON COLUMN upkeep.pipeline_name IS 'its name at admission';
COMMENT ON COLUMN upkeep.kind IS 'pin, unpin, retire (one checkpoint), collect (garbage)';
COMMENT ON COLUMN upkeep.work IS 'what exactly: the bytes of a pin, keys, the commit';
COMMENT ON COLUMN upkeep.location IS 'frozen at admission';
COMMENT ON COLUMN upkeep.generation IS 'of the location, that the pipeline''s row held at admission';
COMMENT ON COLUMN upkeep.commit_generation IS 'pin, retire: generation of the commit it is about';
COMMENT ON COLUMN upkeep.commit_seq IS 'pin, retire: seq of the commit it is about';
COMMENT ON COLUMN upkeep.version IS 'rises with each change; every write names the one it read';
COMMENT ON COLUMN upkeep.term IS 'rises each time a replica claims it; every write names it';
COMMENT ON COLUMN upkeep.lease_owner IS 'replica that drives it';
COMMENT ON COLUMN upkeep.lease_until IS 'nobody else claims it before this time of the database';
COMMENT ON COLUMN upkeep.phase IS 'waiting, then done or failed';
COMMENT ON COLUMN upkeep.tally IS 'what was done so far: retired, swept, objects, bytes, uploads, put_off';
COMMENT ON COLUMN upkeep.problem IS 'why it failed or something was put off; while waiting, what went wrong last';
COMMENT ON COLUMN upkeep.tries IS 'tries without a known outcome';
COMMENT ON COLUMN upkeep.retry_at IS 'not before this';
COMMENT ON COLUMN upkeep.retry IS 'how tries follow each other';
COMMENT ON COLUMN upkeep.request_id IS 'idempotency key it was admitted under';
COMMENT ON COLUMN upkeep.actor IS 'who asked for it';
COMMENT ON COLUMN upkeep.trace_id IS 'W3C trace id of the request';
COMMENT ON COLUMN upkeep.created_at IS 'admission, database clock';
COMMENT ON COLUMN upkeep.updated_at IS 'last change, database clock';
COMMENT ON COLUMN upkeep.ended_at IS 'when it became terminal, database clock';

CREATE TABLE retirements (
    pipeline_id uuid NOT NULL REFERENCES pipelines (id),
    generation  bigint NOT NULL CHECK (generation > 0),
    seq         bigint NOT NULL CHECK (seq > 0),
    round_id    uuid NOT NULL,
    digest      text NOT NULL,
    tombstone   bytea NOT NULL,
    marked_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    landed_at   timestamptz,
    PRIMARY KEY (pipeline_id, generation, seq)
);
CREATE INDEX retirements_open ON retirements (pipeline_id) WHERE landed_at IS NULL;

COMMENT ON TABLE retirements IS 'commits marked under the pipeline''s row lock (G1): no base and no source any more';
COMMENT ON COLUMN retirements.pipeline_id IS 'whose';
COMMENT ON COLUMN retirements.generation IS 'generation of the commit';
COMMENT ON COLUMN retirements.seq IS 'seq of the commit';
COMMENT ON COLUMN retirements.round_id IS 'round that made it';
COMMENT ON COLUMN retirements.digest IS 'BLAKE3 of its bytes';
COMMENT ON COLUMN retirements.tombstone IS 'exact bytes of its tombstone, stored before they are put';
COMMENT ON COLUMN retirements.marked_at IS 'database clock';
COMMENT ON COLUMN retirements.landed_at IS 'when its tombstone was known to stand; null: not yet';

-- Which events there are, the code says: a list in this place would tie the order in which migrations are written.
ALTER TABLE audit_events DROP CONSTRAINT audit_events_event_check;
ALTER TABLE audit_events ADD CONSTRAINT audit_events_event_check CHECK (event ~ '^[a-z]+(_[a-z]+)*$' AND length(event) <= 64);
