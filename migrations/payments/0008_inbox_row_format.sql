-- This format alone reserves the place of a NULL of fixed length: next_attempt_at and processed_at are
-- set in place, and the row need not be written anew.
ALTER TABLE `inbox` ROW_FORMAT = REDUNDANT, ALGORITHM = INPLACE, LOCK = NONE
