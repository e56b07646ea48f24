-- An owner whose location was taken over may follow it: what its columns mean then. Nothing but comments: an older version knows no such row to be an owner either.

COMMENT ON COLUMN pipelines.claim IS 'claiming: the fence is being put; owned: it stands; refused: it will not, claim_problem says why; standby: owns nothing, by design or because it follows whoever took its location over, or, with fence_bytes, the location is fenced off for it and it waits for its last pull';
COMMENT ON COLUMN pipelines.generation IS 'the last one in which it owned its location; 0: it never did';
COMMENT ON COLUMN pipelines.fence_bytes IS 'exact bytes of the fence, stored before they were put; none: it owns nothing';
