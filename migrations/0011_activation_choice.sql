-- An activation may go on from an older checkpoint than the newest, where that one is damaged or gone.

ALTER TABLE take_overs ADD COLUMN chosen jsonb;
COMMENT ON COLUMN take_overs.chosen IS 'activation: the step or checkpoint that an operator wants to go on from; none: exactly what the base names';
COMMENT ON COLUMN take_overs.warm IS 'activation: the commit that the warm pull brought, of a chosen one the very one; none: nothing was there';

-- An older version would pull the base all the same.
UPDATE schema_compatibility SET oldest_reader = 11 WHERE oldest_reader < 11;
