-- Which coordinators can work with this schema, and bounds that no code ever leaves.
--
-- Rule for later migrations: replicas are upgraded one after the other, so the older version runs on the new schema for a while. A migration that it
-- can't live with says so: UPDATE schema_compatibility SET oldest_reader = <number of that migration>.

CREATE TABLE schema_compatibility (
    singleton     boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    oldest_reader bigint NOT NULL
);
INSERT INTO schema_compatibility (oldest_reader) VALUES (1);

COMMENT ON TABLE schema_compatibility IS 'one row: which coordinators can work with this schema';
COMMENT ON COLUMN schema_compatibility.singleton IS 'holds the table to one row';
COMMENT ON COLUMN schema_compatibility.oldest_reader IS 'a coordinator must know the migration of this number, or it refuses to start';

-- Not validated against rows that stand already, so that this takes no scan and can't fail on one bad row: new rows and changes are held to it.
ALTER TABLE pipelines
    ADD CONSTRAINT pipelines_numbers CHECK (spec_version > 0 AND version > 0 AND claim_term >= 0 AND next_round_no > 0 AND next_seq > 0
                                            AND timeline > 0 AND timeline <= 4294967295) NOT VALID,
    ADD CONSTRAINT pipelines_last CHECK (last_generation > 0 AND last_seq > 0 AND last_step >= 0) NOT VALID,
    ADD CONSTRAINT pipelines_last_at CHECK ((last_seq IS NULL) = (last_committed_at IS NULL)) NOT VALID;
ALTER TABLE rounds
    ADD CONSTRAINT rounds_numbers CHECK (version > 0 AND term >= 0 AND step >= 0) NOT VALID,
    ADD CONSTRAINT rounds_base CHECK (base_generation > 0 AND base_seq > 0) NOT VALID,
    ADD CONSTRAINT rounds_source_commit CHECK (source_generation > 0 AND source_seq > 0
                                               AND num_nulls(source_generation, source_seq, source_round_id, source_digest) IN (0, 4)) NOT VALID,
    ADD CONSTRAINT rounds_phase_of_kind CHECK (CASE kind WHEN 'push' THEN phase NOT IN ('resolving', 'installing', 'installed', 'fresh')
                                                         ELSE phase NOT IN ('planning', 'committing', 'committed') END) NOT VALID,
    ADD CONSTRAINT rounds_cancel_whole CHECK ((cancelled_by IS NULL) = (cancel_cause IS NULL)) NOT VALID;
ALTER TABLE participants
    ADD CONSTRAINT participants_numbers CHECK (files >= 0 AND bytes >= 0 AND bytes_uploaded >= 0) NOT VALID;
