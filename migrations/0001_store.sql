-- The whole store of a Lockstep coordinator. What the columns mean to a reader stands in docs/audit.md.
--
-- Rules that hold whatever a client does are enforced here as well as in the code: one active round a pipeline (S13), an
-- audit trail that only grows, terminal rounds that never change (S5), stored decision bytes that never change.

CREATE TABLE database_identity (
    singleton   boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    database_id uuid NOT NULL DEFAULT gen_random_uuid(),
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO database_identity DEFAULT VALUES;

COMMENT ON TABLE database_identity IS 'one row: tells this database from one that was restored, recreated or copied (R13)';
COMMENT ON COLUMN database_identity.singleton IS 'holds the table to one row';
COMMENT ON COLUMN database_identity.database_id IS 'minted by the first migration; stands in every fence this database writes';
COMMENT ON COLUMN database_identity.created_at IS 'when the first migration ran';

CREATE TABLE pipelines (
    id                  uuid PRIMARY KEY,
    name                text NOT NULL CHECK (name ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'),
    spec                jsonb NOT NULL,
    spec_version        bigint NOT NULL DEFAULT 1,
    version             bigint NOT NULL DEFAULT 1,
    n_hosts             integer NOT NULL CHECK (n_hosts >= 0),
    location_endpoint   text,
    location_bucket     text NOT NULL,
    location_prefix     text NOT NULL,
    generation          bigint NOT NULL DEFAULT 0 CHECK (generation >= 0),
    claim               text NOT NULL CHECK (claim IN ('claiming', 'owned', 'refused', 'standby')),
    claim_term          bigint NOT NULL DEFAULT 0,
    claim_lease_owner   text,
    claim_lease_until   timestamptz,
    claim_problem       jsonb,
    fence_bytes         bytea,
    fenced_at           timestamptz,
    fenced_problem      jsonb,
    database_id         uuid NOT NULL,
    system_identifier   text NOT NULL,
    timeline            bigint NOT NULL,
    next_round_no       bigint NOT NULL DEFAULT 1,
    next_seq            bigint NOT NULL DEFAULT 1,
    last_generation     bigint,
    last_seq            bigint,
    last_round_id       uuid,
    last_digest         text,
    last_step           bigint,
    last_fingerprint    text,
    last_local          uuid[],
    last_committed_at   timestamptz,
    request_id          uuid,
    request_digest      text,
    created_by          text NOT NULL,
    created_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    deleted_at          timestamptz,
    CONSTRAINT pipelines_request UNIQUE (request_id),
    CONSTRAINT pipelines_claim_bytes CHECK (claim = 'standby' OR fence_bytes IS NOT NULL),
    CONSTRAINT pipelines_owner CHECK (claim <> 'owned' OR generation > 0),
    CONSTRAINT pipelines_refused CHECK (claim <> 'refused' OR (claim_problem IS NOT NULL AND deleted_at IS NOT NULL)),
    CONSTRAINT pipelines_last_whole CHECK (num_nulls(last_generation, last_seq, last_round_id, last_digest, last_step) IN (0, 5))
) WITH (fillfactor = 80);
CREATE UNIQUE INDEX pipelines_name ON pipelines (name) WHERE deleted_at IS NULL;
CREATE INDEX pipelines_location ON pipelines (location_bucket) WHERE deleted_at IS NULL;
CREATE INDEX pipelines_claiming ON pipelines (id) WHERE claim = 'claiming' AND deleted_at IS NULL;

COMMENT ON TABLE pipelines IS 'one stateful program over n_hosts pods; kept after it was deleted, so that its rounds keep a name';
COMMENT ON COLUMN pipelines.id IS 'immutable';
COMMENT ON COLUMN pipelines.name IS 'unique among those not deleted; may change';
COMMENT ON COLUMN pipelines.spec IS 'the whole spec in the shape it is written in; never holds a secret';
COMMENT ON COLUMN pipelines.spec_version IS 'rises with each change of the spec; its text is the etag';
COMMENT ON COLUMN pipelines.version IS 'rises with each write to this row';
COMMENT ON COLUMN pipelines.n_hosts IS 'from the spec; 0 is solo';
COMMENT ON COLUMN pipelines.location_endpoint IS 'from the spec; null is AWS';
COMMENT ON COLUMN pipelines.location_bucket IS 'from the spec';
COMMENT ON COLUMN pipelines.location_prefix IS 'from the spec; empty is the whole bucket';
COMMENT ON COLUMN pipelines.generation IS 'of the own location; 0 before it is owned';
COMMENT ON COLUMN pipelines.claim IS 'claiming: the fence is being put; owned: it stands; refused: it will not, claim_problem says why; standby: owns nothing by design';
COMMENT ON COLUMN pipelines.claim_term IS 'rises each time a replica takes the claim over';
COMMENT ON COLUMN pipelines.claim_lease_owner IS 'replica that drives the claim';
COMMENT ON COLUMN pipelines.claim_lease_until IS 'nobody else takes the claim over before this time of the database';
COMMENT ON COLUMN pipelines.claim_problem IS 'why the claim was refused, or while claiming what went wrong last';
COMMENT ON COLUMN pipelines.fence_bytes IS 'exact bytes of the fence, stored before they were put';
COMMENT ON COLUMN pipelines.fenced_at IS 'when it was found that a newer generation took the location over; admits no round since';
COMMENT ON COLUMN pipelines.fenced_problem IS 'who did, as far as known';
COMMENT ON COLUMN pipelines.database_id IS 'identity of the database that wrote fence_bytes';
COMMENT ON COLUMN pipelines.system_identifier IS 'Postgres system identifier of that database';
COMMENT ON COLUMN pipelines.timeline IS 'Postgres timeline of that database';
COMMENT ON COLUMN pipelines.next_round_no IS 'number of the next round';
COMMENT ON COLUMN pipelines.next_seq IS 'place of the next push in the commit chain of this generation';
COMMENT ON COLUMN pipelines.last_generation IS 'newest commit known to stand: its generation';
COMMENT ON COLUMN pipelines.last_seq IS 'newest commit known to stand: its place in the chain';
COMMENT ON COLUMN pipelines.last_round_id IS 'newest commit known to stand: the push that made it';
COMMENT ON COLUMN pipelines.last_digest IS 'newest commit known to stand: BLAKE3 of the exact bytes';
COMMENT ON COLUMN pipelines.last_step IS 'newest commit known to stand: step of its cut';
COMMENT ON COLUMN pipelines.last_fingerprint IS 'newest commit known to stand: fingerprint of its program, a decimal number of 64 bits';
COMMENT ON COLUMN pipelines.last_local IS 'newest commit known to stand: the local checkpoints it was made of, by host index';
COMMENT ON COLUMN pipelines.last_committed_at IS 'newest commit known to stand: when it was acknowledged';
COMMENT ON COLUMN pipelines.request_id IS 'idempotency key of the create';
COMMENT ON COLUMN pipelines.request_digest IS 'BLAKE3 of the parameters of the create';
COMMENT ON COLUMN pipelines.created_by IS 'who created it';
COMMENT ON COLUMN pipelines.created_at IS 'database clock';
COMMENT ON COLUMN pipelines.updated_at IS 'database clock';
COMMENT ON COLUMN pipelines.deleted_at IS 'database clock; null while it lives';

CREATE TABLE rounds (
    id                    uuid PRIMARY KEY,
    pipeline_id           uuid NOT NULL REFERENCES pipelines (id),
    pipeline_name         text NOT NULL,
    kind                  text NOT NULL CHECK (kind IN ('push', 'pull')),
    round_no              bigint NOT NULL CHECK (round_no > 0),
    generation            bigint NOT NULL CHECK (generation >= 0),
    n_hosts               integer NOT NULL CHECK (n_hosts >= 0),
    version               bigint NOT NULL DEFAULT 1,
    term                  bigint NOT NULL DEFAULT 0,
    lease_owner           text,
    lease_until           timestamptz,
    phase                 text NOT NULL CHECK (phase IN ('planning', 'resolving', 'transferring', 'committing', 'installing',
                              'committed', 'installed', 'fresh', 'failed', 'cancelled')),
    deadline              timestamptz NOT NULL,
    problem_reason        text,
    problem               jsonb,
    cancelled_by          text,
    cancel_cause          text,
    seq                   bigint CHECK (seq > 0),
    step                  bigint,
    fingerprint           text,
    base_generation       bigint,
    base_seq              bigint,
    base_round_id         uuid,
    base_digest           text,
    commit_bytes          bytea,
    abort_bytes           bytea,
    commit_digest         text,
    source                text CHECK (source IN ('local', 'location', 'read_location', 'fresh')),
    source_location       text,
    source_generation     bigint,
    source_seq            bigint,
    source_round_id       uuid,
    source_digest         text,
    location              jsonb NOT NULL,
    read_location         jsonb,
    transfer              jsonb NOT NULL,
    retry                 jsonb NOT NULL,
    state                 jsonb NOT NULL,
    request_id            uuid,
    actor                 text NOT NULL,
    trace_id              text,
    traceparent           text,
    created_at            timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at            timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at              timestamptz,
    CONSTRAINT rounds_number UNIQUE (pipeline_id, round_no),
    CONSTRAINT rounds_ended CHECK ((ended_at IS NULL) = (phase IN ('planning', 'resolving', 'transferring', 'committing', 'installing'))),
    CONSTRAINT rounds_seq CHECK ((kind = 'push') = (seq IS NOT NULL)),
    CONSTRAINT rounds_base_whole CHECK (num_nulls(base_generation, base_seq, base_round_id, base_digest) IN (0, 4)),
    CONSTRAINT rounds_decision CHECK (phase <> 'committing' OR commit_bytes IS NOT NULL),
    CONSTRAINT rounds_committed CHECK ((phase = 'committed') = (commit_digest IS NOT NULL)),
    CONSTRAINT rounds_problem CHECK ((problem IS NULL) = (problem_reason IS NULL)),
    CONSTRAINT rounds_why CHECK (phase NOT IN ('failed', 'cancelled') OR problem IS NOT NULL)
) WITH (fillfactor = 60);
-- S13.
CREATE UNIQUE INDEX rounds_one_active ON rounds (pipeline_id) WHERE ended_at IS NULL;
-- One decision key belongs to one round.
CREATE UNIQUE INDEX rounds_seq_once ON rounds (pipeline_id, generation, seq) WHERE kind = 'push';
CREATE INDEX rounds_by_pipeline ON rounds (pipeline_id, created_at DESC, id DESC);
CREATE INDEX rounds_newest ON rounds (created_at DESC, id DESC);

COMMENT ON TABLE rounds IS 'one push or pull of one checkpoint over a frozen set of hosts; never deleted, never changed once it ended';
COMMENT ON COLUMN rounds.id IS 'of a committed push also the id of its checkpoint';
COMMENT ON COLUMN rounds.pipeline_id IS 'whose';
COMMENT ON COLUMN rounds.pipeline_name IS 'name of the pipeline at admission';
COMMENT ON COLUMN rounds.kind IS 'push or pull';
COMMENT ON COLUMN rounds.round_no IS 'number in the pipeline, from 1';
COMMENT ON COLUMN rounds.generation IS 'of the pipeline''s own location at admission; 0 if it owned none';
COMMENT ON COLUMN rounds.n_hosts IS 'frozen at admission; 0 is solo';
COMMENT ON COLUMN rounds.version IS 'rises with each change; every write names the one it read (S6)';
COMMENT ON COLUMN rounds.term IS 'rises each time a replica claims the round; every write names it (S6)';
COMMENT ON COLUMN rounds.lease_owner IS 'replica that drives the round';
COMMENT ON COLUMN rounds.lease_until IS 'nobody else claims the round before this time of the database; permits, never fences';
COMMENT ON COLUMN rounds.phase IS 'push: planning, transferring, committing, committed; pull: resolving, transferring, installing, installed or fresh; both: failed, cancelled';
COMMENT ON COLUMN rounds.deadline IS 'acts on the first two phases';
COMMENT ON COLUMN rounds.problem_reason IS 'reason of the problem, as in ErrorInfo.reason';
COMMENT ON COLUMN rounds.problem IS 'why it failed or was cancelled; while active, what went wrong last';
COMMENT ON COLUMN rounds.cancelled_by IS 'who asked to cancel, once the round has taken notice';
COMMENT ON COLUMN rounds.cancel_cause IS 'why they asked';
COMMENT ON COLUMN rounds.seq IS 'push: place in the commit chain of its generation, taken at admission';
COMMENT ON COLUMN rounds.step IS 'step of the cut, once chosen';
COMMENT ON COLUMN rounds.fingerprint IS 'fingerprint of the program, a decimal number of 64 bits';
COMMENT ON COLUMN rounds.base_generation IS 'push: commit whose objects may be reused, pinned at admission: its generation';
COMMENT ON COLUMN rounds.base_seq IS 'push: place of the base in its chain';
COMMENT ON COLUMN rounds.base_round_id IS 'push: round that made the base';
COMMENT ON COLUMN rounds.base_digest IS 'push: BLAKE3 of the base''s bytes';
COMMENT ON COLUMN rounds.commit_bytes IS 'push: exact bytes of the commit document, stored before they are put; never changed';
COMMENT ON COLUMN rounds.abort_bytes IS 'push: exact bytes of the abort record, stored before they are put; never changed';
COMMENT ON COLUMN rounds.commit_digest IS 'push: BLAKE3 of the commit that stands; set exactly when committed (S4)';
COMMENT ON COLUMN rounds.source IS 'pull: where it is served from, once resolved';
COMMENT ON COLUMN rounds.source_location IS 'pull: location of the source commit';
COMMENT ON COLUMN rounds.source_generation IS 'pull: source commit, protected while the round is active (G5): its generation';
COMMENT ON COLUMN rounds.source_seq IS 'pull: place of the source commit in its chain';
COMMENT ON COLUMN rounds.source_round_id IS 'pull: round that made the source commit';
COMMENT ON COLUMN rounds.source_digest IS 'pull: BLAKE3 of the source commit''s bytes';
COMMENT ON COLUMN rounds.location IS 'own location, frozen at admission';
COMMENT ON COLUMN rounds.read_location IS 'read-only location, frozen at admission';
COMMENT ON COLUMN rounds.transfer IS 'limits of the transfers, frozen at admission';
COMMENT ON COLUMN rounds.retry IS 'retry policy, frozen at admission';
COMMENT ON COLUMN rounds.state IS 'the rest of the state machine: what was asked for, parent or source, retries of the decision';
COMMENT ON COLUMN rounds.request_id IS 'idempotency key it was admitted under';
COMMENT ON COLUMN rounds.actor IS 'who asked for it';
COMMENT ON COLUMN rounds.trace_id IS 'W3C trace id of the request';
COMMENT ON COLUMN rounds.traceparent IS 'W3C traceparent of the request';
COMMENT ON COLUMN rounds.created_at IS 'admission, database clock';
COMMENT ON COLUMN rounds.updated_at IS 'last change, database clock';
COMMENT ON COLUMN rounds.ended_at IS 'when it became terminal, database clock';

CREATE TABLE participants (
    round_id         uuid NOT NULL REFERENCES rounds (id),
    host_idx         integer NOT NULL CHECK (host_idx >= 0),
    address          text NOT NULL,
    phase            text NOT NULL CHECK (phase IN ('waiting', 'ordered', 'backing_off', 'done', 'staged', 'installed', 'failed')),
    attempt          integer NOT NULL CHECK (attempt > 0),
    incarnation      uuid,
    local_checkpoint uuid,
    files            bigint,
    bytes            bigint,
    bytes_uploaded   bigint,
    part             jsonb,
    retry_at         timestamptz,
    problem_reason   text,
    problem          jsonb,
    updated_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (round_id, host_idx)
) WITH (fillfactor = 60);

COMMENT ON TABLE participants IS 'one host''s row in one round';
COMMENT ON COLUMN participants.round_id IS 'of which round';
COMMENT ON COLUMN participants.host_idx IS 'slot in the layout; 0 for solo';
COMMENT ON COLUMN participants.address IS 'where its agent is, frozen at admission';
COMMENT ON COLUMN participants.phase IS 'waiting, ordered, backing_off, done (push), staged and installed (pull), failed';
COMMENT ON COLUMN participants.attempt IS 'present try, from 1';
COMMENT ON COLUMN participants.incarnation IS 'agent process that the present try is for; only its reports count (S8)';
COMMENT ON COLUMN participants.local_checkpoint IS 'the host''s own checkpoint in the cut';
COMMENT ON COLUMN participants.files IS 'push: files of the reported part';
COMMENT ON COLUMN participants.bytes IS 'push: bytes of the reported part';
COMMENT ON COLUMN participants.bytes_uploaded IS 'push: bytes that this round sent for it';
COMMENT ON COLUMN participants.part IS 'push: the part as the commit document will name it';
COMMENT ON COLUMN participants.retry_at IS 'while backing off: not before this time';
COMMENT ON COLUMN participants.problem_reason IS 'reason of the problem, as in ErrorInfo.reason';
COMMENT ON COLUMN participants.problem IS 'what went wrong last, also in a try that is being repeated';
COMMENT ON COLUMN participants.updated_at IS 'last change, database clock';

-- Not logged: written every few seconds by every transfer, of no use after a crash.
CREATE UNLOGGED TABLE progress (
    round_id          uuid NOT NULL,
    host_idx          integer NOT NULL,
    attempt           integer NOT NULL,
    bytes_done        bigint NOT NULL,
    bytes_total       bigint,
    files_done        bigint NOT NULL,
    files_total       bigint,
    bytes_transferred bigint NOT NULL,
    bytes_per_second  bigint NOT NULL,
    updated_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (round_id, host_idx)
) WITH (fillfactor = 50);

COMMENT ON TABLE progress IS 'how far each host is; a hint for people, lost if Postgres crashes';
COMMENT ON COLUMN progress.round_id IS 'of which round';
COMMENT ON COLUMN progress.host_idx IS 'slot in the layout; 0 for solo';
COMMENT ON COLUMN progress.attempt IS 'of which try';
COMMENT ON COLUMN progress.bytes_done IS 'bytes dealt with: sent, received, reused or found in place';
COMMENT ON COLUMN progress.bytes_total IS 'of how many, if known';
COMMENT ON COLUMN progress.files_done IS 'files finished';
COMMENT ON COLUMN progress.files_total IS 'of how many, if known';
COMMENT ON COLUMN progress.bytes_transferred IS 'bytes that went over the network';
COMMENT ON COLUMN progress.bytes_per_second IS 'rate, lately';
COMMENT ON COLUMN progress.updated_at IS 'database clock';

CREATE TABLE cancel_requests (
    round_id     uuid PRIMARY KEY REFERENCES rounds (id),
    requested_by text NOT NULL,
    cause        text NOT NULL,
    trace_id     text,
    requested_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

COMMENT ON TABLE cancel_requests IS 'who asked to stop a round; the replica that drives it reads this and decides';
COMMENT ON COLUMN cancel_requests.round_id IS 'which round; the first request counts';
COMMENT ON COLUMN cancel_requests.requested_by IS 'who';
COMMENT ON COLUMN cancel_requests.cause IS 'why, in their words';
COMMENT ON COLUMN cancel_requests.trace_id IS 'W3C trace id of the request';
COMMENT ON COLUMN cancel_requests.requested_at IS 'database clock';

CREATE TABLE requests (
    pipeline_id uuid NOT NULL REFERENCES pipelines (id),
    request_id  uuid NOT NULL,
    digest      text NOT NULL,
    parameters  jsonb NOT NULL,
    round_id    uuid NOT NULL REFERENCES rounds (id),
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT requests_known PRIMARY KEY (pipeline_id, request_id)
);

COMMENT ON TABLE requests IS 'which round answered which request id (S14)';
COMMENT ON COLUMN requests.pipeline_id IS 'of which pipeline';
COMMENT ON COLUMN requests.request_id IS 'idempotency key of the caller';
COMMENT ON COLUMN requests.digest IS 'BLAKE3 of the parameters; the same id with another digest is refused';
COMMENT ON COLUMN requests.parameters IS 'the parameters, for a reader';
COMMENT ON COLUMN requests.round_id IS 'the round that answered';
COMMENT ON COLUMN requests.created_at IS 'database clock';

CREATE TABLE audit_events (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at            timestamptz NOT NULL DEFAULT clock_timestamp(),
    pipeline_id   uuid NOT NULL,
    round_id      uuid,
    host_idx      integer,
    event         text NOT NULL CHECK (event IN ('pipeline_created', 'pipeline_updated', 'pipeline_deleted', 'pipeline_claim',
                      'pipeline_fenced', 'round_admitted', 'round_claimed', 'round_released', 'round_phase', 'host_phase', 'round_note',
                      'cancel_requested')),
    from_phase    text,
    to_phase      text,
    cause         text NOT NULL,
    actor         text NOT NULL,
    trace_id      text,
    term          bigint,
    version       bigint
);
CREATE INDEX audit_events_by_pipeline ON audit_events (pipeline_id, id);
CREATE INDEX audit_events_by_round ON audit_events (round_id, id);

COMMENT ON TABLE audit_events IS 'append-only: who asked what, and each change with its cause, written in the transaction of the change';
COMMENT ON COLUMN audit_events.id IS 'rises in the order of writing, with gaps';
COMMENT ON COLUMN audit_events.at IS 'database clock';
COMMENT ON COLUMN audit_events.pipeline_id IS 'of which pipeline';
COMMENT ON COLUMN audit_events.round_id IS 'of which round; null: the pipeline as a whole';
COMMENT ON COLUMN audit_events.host_idx IS 'of which host; null: the round as a whole';
COMMENT ON COLUMN audit_events.event IS 'what sort of event, see docs/audit.md';
COMMENT ON COLUMN audit_events.from_phase IS 'phase or state before';
COMMENT ON COLUMN audit_events.to_phase IS 'phase or state after';
COMMENT ON COLUMN audit_events.cause IS 'why, for a reader';
COMMENT ON COLUMN audit_events.actor IS 'who: a caller, or "replica" and its name';
COMMENT ON COLUMN audit_events.trace_id IS 'W3C trace id';
COMMENT ON COLUMN audit_events.term IS 'term of the round at that time';
COMMENT ON COLUMN audit_events.version IS 'version of the round after the change';

CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit_events is append-only: % is refused', TG_OP USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_events
    FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only();

CREATE FUNCTION rounds_only_go_forward() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'UPDATE' THEN
        RAISE EXCEPTION 'rounds are never deleted: % is refused', TG_OP USING ERRCODE = 'restrict_violation';
    END IF;
    IF OLD.ended_at IS NOT NULL THEN
        RAISE EXCEPTION 'round % is %: terminal rounds never change', OLD.id, OLD.phase USING ERRCODE = 'restrict_violation';
    END IF;
    IF NEW.version < OLD.version OR NEW.term < OLD.term THEN
        RAISE EXCEPTION 'round %: version and term never fall', OLD.id USING ERRCODE = 'restrict_violation';
    END IF;
    IF (OLD.commit_bytes IS NOT NULL AND NEW.commit_bytes IS DISTINCT FROM OLD.commit_bytes)
        OR (OLD.abort_bytes IS NOT NULL AND NEW.abort_bytes IS DISTINCT FROM OLD.abort_bytes) THEN
        RAISE EXCEPTION 'round %: stored decision bytes never change', OLD.id USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER rounds_forward BEFORE UPDATE OR DELETE ON rounds FOR EACH ROW EXECUTE FUNCTION rounds_only_go_forward();
CREATE TRIGGER rounds_keep BEFORE TRUNCATE ON rounds FOR EACH STATEMENT EXECUTE FUNCTION rounds_only_go_forward();

CREATE VIEW checkpoints AS
    SELECT r.pipeline_name AS pipeline, r.pipeline_id, r.id AS checkpoint, r.generation, r.seq, r.step, r.fingerprint,
           r.commit_digest AS digest, p.hosts, p.files, p.bytes, p.bytes_uploaded, r.created_at AS asked_at, r.ended_at AS committed_at,
           r.actor, r.trace_id
    FROM rounds r
    CROSS JOIN LATERAL (SELECT count(*) AS hosts, sum(files)::bigint AS files, sum(bytes)::bigint AS bytes,
                               sum(bytes_uploaded)::bigint AS bytes_uploaded
                        FROM participants WHERE round_id = r.id) p
    WHERE r.phase = 'committed';
COMMENT ON VIEW checkpoints IS 'every checkpoint this database has committed; what counts and still exists, the bucket says';

CREATE VIEW audit_trail AS
    SELECT a.id, a.at, p.name AS pipeline, r.round_no, r.kind, a.host_idx AS host, a.event, a.from_phase, a.to_phase, a.cause, a.actor,
           a.trace_id, a.term, a.version, a.pipeline_id, a.round_id
    FROM audit_events a
    LEFT JOIN pipelines p ON p.id = a.pipeline_id
    LEFT JOIN rounds r ON r.id = a.round_id;
COMMENT ON VIEW audit_trail IS 'audit_events with names in the place of ids';
