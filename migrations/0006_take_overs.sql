-- Take-overs of locations: rows that dispatch drives, so that each of their PUTs survives the crash of the replica that sent it.

CREATE TABLE take_overs (
    id            uuid PRIMARY KEY,
    pipeline_id   uuid NOT NULL REFERENCES pipelines (id),
    pipeline_name text NOT NULL,
    purpose       text NOT NULL CHECK (purpose IN ('take_over')),
    holds         bigint NOT NULL CHECK (holds >= 0),
    location      jsonb NOT NULL,
    writer        jsonb NOT NULL,
    version       bigint NOT NULL DEFAULT 1,
    term          bigint NOT NULL DEFAULT 0,
    lease_owner   text,
    lease_until   timestamptz,
    phase         text NOT NULL CHECK (phase IN ('preparing', 'fencing', 'basing', 'adopting', 'done', 'failed', 'cancelled')),
    generation    bigint CHECK (generation > 0),
    fence_bytes   bytea,
    base_bytes    bytea,
    problem       jsonb,
    cancel        jsonb,
    tries         integer NOT NULL DEFAULT 0,
    retry_at      timestamptz,
    retry         jsonb NOT NULL,
    request_id    uuid,
    actor         text NOT NULL,
    trace_id      text,
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at      timestamptz,
    CONSTRAINT take_overs_request UNIQUE (pipeline_id, request_id),
    CONSTRAINT take_overs_ended CHECK ((ended_at IS NULL) = (phase NOT IN ('done', 'failed', 'cancelled'))),
    CONSTRAINT take_overs_bytes CHECK (phase NOT IN ('fencing', 'basing', 'adopting', 'done') OR (fence_bytes IS NOT NULL AND generation IS NOT NULL))
) WITH (fillfactor = 70);
CREATE UNIQUE INDEX take_overs_one_active ON take_overs (pipeline_id) WHERE ended_at IS NULL;
CREATE INDEX take_overs_by_pipeline ON take_overs (pipeline_id, created_at DESC);

COMMENT ON TABLE take_overs IS 'one take-over of one location by one pipeline; never deleted';
COMMENT ON COLUMN take_overs.id IS 'stands in the fence, so that no two take-overs write the same bytes';
COMMENT ON COLUMN take_overs.pipeline_id IS 'who takes over';
COMMENT ON COLUMN take_overs.pipeline_name IS 'its name at admission';
COMMENT ON COLUMN take_overs.purpose IS 'take_over: asked for, whoever owns the location';
COMMENT ON COLUMN take_overs.holds IS 'generation of the location that the pipeline''s row held at admission; 0: none';
COMMENT ON COLUMN take_overs.location IS 'what is taken over, frozen at admission';
COMMENT ON COLUMN take_overs.writer IS 'identity of the database, as the fence will name it';
COMMENT ON COLUMN take_overs.version IS 'rises with each change; every write names the one it read';
COMMENT ON COLUMN take_overs.term IS 'rises each time a replica claims it; every write names it';
COMMENT ON COLUMN take_overs.lease_owner IS 'replica that drives it';
COMMENT ON COLUMN take_overs.lease_until IS 'nobody else claims it before this time of the database';
COMMENT ON COLUMN take_overs.phase IS 'preparing, fencing, basing, adopting, then done; failed, cancelled';
COMMENT ON COLUMN take_overs.generation IS 'that it starts, once the fence is prepared';
COMMENT ON COLUMN take_overs.fence_bytes IS 'exact bytes of the fence, stored before they are put';
COMMENT ON COLUMN take_overs.base_bytes IS 'the base that stands, whoever wrote it';
COMMENT ON COLUMN take_overs.problem IS 'why it failed; while active, what went wrong last';
COMMENT ON COLUMN take_overs.cancel IS 'who asked in time to stop it, and why';
COMMENT ON COLUMN take_overs.tries IS 'tries of the present phase without a known outcome';
COMMENT ON COLUMN take_overs.retry_at IS 'not before this';
COMMENT ON COLUMN take_overs.retry IS 'how tries follow each other';
COMMENT ON COLUMN take_overs.request_id IS 'idempotency key it was admitted under';
COMMENT ON COLUMN take_overs.actor IS 'who asked for it';
COMMENT ON COLUMN take_overs.trace_id IS 'W3C trace id of the request';
COMMENT ON COLUMN take_overs.created_at IS 'admission, database clock';
COMMENT ON COLUMN take_overs.updated_at IS 'last change, database clock';
COMMENT ON COLUMN take_overs.ended_at IS 'when it became terminal, database clock';

ALTER TABLE audit_events DROP CONSTRAINT audit_events_event_check;
ALTER TABLE audit_events ADD CONSTRAINT audit_events_event_check CHECK (event IN (
    'pipeline_created', 'pipeline_updated', 'pipeline_deleted', 'pipeline_claim', 'pipeline_fenced', 'round_admitted', 'round_claimed',
    'round_released', 'round_phase', 'round_note', 'host_phase', 'cancel_requested', 'take_over_admitted', 'take_over_phase'));
