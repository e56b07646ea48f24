-- What hosts are told when a pull has ended well: that their engines may start. Owed until every host has answered.

CREATE TABLE ready_words (
    pipeline_id uuid PRIMARY KEY REFERENCES pipelines (id),
    round_id    uuid NOT NULL REFERENCES rounds (id),
    role        text NOT NULL CHECK (role IN ('active', 'standby')),
    version     bigint NOT NULL DEFAULT 1,
    term        bigint NOT NULL,
    hosts       jsonb NOT NULL CHECK (jsonb_typeof(hosts) = 'array'),
    tries       integer NOT NULL DEFAULT 0,
    retry_at    timestamptz,
    lease_until timestamptz,
    told_at     timestamptz,
    updated_at  timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 80);
CREATE INDEX ready_words_owed ON ready_words (pipeline_id) WHERE told_at IS NULL;

COMMENT ON TABLE ready_words IS 'the newest pull of a pipeline that ended well, and which hosts were told so; gone once a newer pull installs';
COMMENT ON COLUMN ready_words.pipeline_id IS 'whose hosts';
COMMENT ON COLUMN ready_words.round_id IS 'the pull that every host has ended';
COMMENT ON COLUMN ready_words.role IS 'active: engines may start and write; standby: they wait, the pipeline owns nothing yet';
COMMENT ON COLUMN ready_words.version IS 'rises with each change; every write names the one it read';
COMMENT ON COLUMN ready_words.term IS 'above that of the round; rises each time a replica tells, and agents refuse a lower one';
COMMENT ON COLUMN ready_words.hosts IS 'by host index: told, and else the problem of the last try';
COMMENT ON COLUMN ready_words.tries IS 'goes round in which not every host has answered';
COMMENT ON COLUMN ready_words.retry_at IS 'the next one is not before this time of the database';
COMMENT ON COLUMN ready_words.lease_until IS 'no other replica tells before this time of the database';
COMMENT ON COLUMN ready_words.told_at IS 'when every host had answered';
COMMENT ON COLUMN ready_words.updated_at IS 'last change, database clock';
