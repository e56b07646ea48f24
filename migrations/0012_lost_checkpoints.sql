-- Which checkpoint is lost, so that it can be looked for again; and what an operator has accepted as lost.

ALTER TABLE pipelines ADD COLUMN lost_generation bigint;
ALTER TABLE pipelines ADD COLUMN lost_seq bigint;
ALTER TABLE pipelines ADD COLUMN lost_round_id uuid;
ALTER TABLE pipelines ADD COLUMN lost_digest text;
COMMENT ON COLUMN pipelines.lost_at IS 'when it was found that the bucket does not hold what this database knows as committed; nothing is collected until it is found again or accepted';
COMMENT ON COLUMN pipelines.lost_generation IS 'lost commit: its generation';
COMMENT ON COLUMN pipelines.lost_seq IS 'lost commit: its place in its generation';
COMMENT ON COLUMN pipelines.lost_round_id IS 'lost commit: the push that made it';
COMMENT ON COLUMN pipelines.lost_digest IS 'lost commit: BLAKE3 of its bytes';

UPDATE pipelines p SET lost_generation = r.generation, lost_seq = r.seq, lost_round_id = r.id, lost_digest = r.commit_digest
FROM rounds r
WHERE p.lost_problem IS NOT NULL AND r.id::text = p.lost_problem -> 'metadata' ->> 'checkpoint' AND r.commit_digest IS NOT NULL;
-- One whose round this database does not know: the comparison at the next start says it anew.
UPDATE pipelines SET lost_at = NULL, lost_problem = NULL WHERE lost_problem IS NOT NULL AND lost_round_id IS NULL;

CREATE TABLE accepted_losses (
    id              uuid PRIMARY KEY,
    pipeline_id     uuid NOT NULL REFERENCES pipelines (id),
    lost_generation bigint NOT NULL CHECK (lost_generation > 0),
    lost_seq        bigint NOT NULL CHECK (lost_seq > 0),
    lost_round_id   uuid NOT NULL,
    lost_digest     text NOT NULL,
    problem         jsonb NOT NULL,
    cause           text NOT NULL,
    request_id      uuid,
    actor           text NOT NULL,
    trace_id        text,
    accepted_at     timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE UNIQUE INDEX accepted_losses_by_request ON accepted_losses (pipeline_id, request_id) WHERE request_id IS NOT NULL;
CREATE INDEX accepted_losses_by_pipeline ON accepted_losses (pipeline_id, accepted_at);

COMMENT ON TABLE accepted_losses IS 'one checkpoint that the bucket has lost and that an operator has given up; never deleted';
COMMENT ON COLUMN accepted_losses.id IS 'drawn for this acceptance';
COMMENT ON COLUMN accepted_losses.pipeline_id IS 'whose checkpoint';
COMMENT ON COLUMN accepted_losses.lost_generation IS 'place of the commit';
COMMENT ON COLUMN accepted_losses.lost_seq IS 'place of the commit in its generation';
COMMENT ON COLUMN accepted_losses.lost_round_id IS 'the push that made it';
COMMENT ON COLUMN accepted_losses.lost_digest IS 'BLAKE3 of the commit''s bytes';
COMMENT ON COLUMN accepted_losses.problem IS 'what was found to be lost';
COMMENT ON COLUMN accepted_losses.cause IS 'why it was accepted, as the caller says';
COMMENT ON COLUMN accepted_losses.request_id IS 'the caller''s idempotency key, if any';
COMMENT ON COLUMN accepted_losses.actor IS 'who accepted it';
COMMENT ON COLUMN accepted_losses.trace_id IS 'W3C trace id of the request';
COMMENT ON COLUMN accepted_losses.accepted_at IS 'database clock';
