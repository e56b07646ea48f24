-- Periodic pushes: which rounds they are, and when each pipeline is looked at next.

ALTER TABLE rounds ADD COLUMN periodic boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN rounds.periodic IS 'push: asked for by the pipeline''s push_interval, not by a caller';

CREATE TABLE push_schedules (
    pipeline_id   uuid PRIMARY KEY REFERENCES pipelines (id),
    due_at        timestamptz NOT NULL,
    failures      integer NOT NULL DEFAULT 0 CHECK (failures >= 0),
    problem       jsonb,
    seen_round_id uuid,
    version       bigint NOT NULL DEFAULT 0,
    looking_until timestamptz,
    updated_at    timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 70);
CREATE INDEX push_schedules_due ON push_schedules (due_at);

COMMENT ON TABLE push_schedules IS 'one row for each pipeline that ever had a push_interval';
COMMENT ON COLUMN push_schedules.pipeline_id IS 'whose';
COMMENT ON COLUMN push_schedules.due_at IS 'no replica looks at it before this time of the database';
COMMENT ON COLUMN push_schedules.failures IS 'periodic pushes that failed since one was committed or nothing was to be pushed';
COMMENT ON COLUMN push_schedules.problem IS 'why the last of them failed';
COMMENT ON COLUMN push_schedules.seen_round_id IS 'the ended push that due_at and failures reckon with';
COMMENT ON COLUMN push_schedules.version IS 'rises with each look; a write names the one it looked at';
COMMENT ON COLUMN push_schedules.looking_until IS 'a replica looks at it until then, unless it is done sooner';
COMMENT ON COLUMN push_schedules.updated_at IS 'last change, database clock';
