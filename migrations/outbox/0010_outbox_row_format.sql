-- This format alone reserves the place of a NULL of fixed length: a mark sets sent_at in place. In the
-- others the row grows, must be written anew, and the page with it: 4 of 14 µs a row (BENCHMARKS.md).
ALTER TABLE `outbox` ROW_FORMAT = REDUNDANT, ALGORITHM = INPLACE, LOCK = NONE
