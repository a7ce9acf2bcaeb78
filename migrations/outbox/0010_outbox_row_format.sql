-- This format alone keeps the place of a NULL of fixed length, so that a mark sets sent_at in place. A
-- table with much in it is left as it is: to write it anew is for a person to plan (docs/sizing.md). So
-- is one that this account may not alter.
SET @`row_format` = IF(
  EXISTS(
    SELECT 1 FROM information_schema.TABLES
    WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = TRIM(BOTH '`' FROM '`outbox`')
    AND ROW_FORMAT IN ('Dynamic', 'Compact') AND DATA_LENGTH < 16777216
  ) AND (
    EXISTS(SELECT 1 FROM information_schema.USER_PRIVILEGES WHERE PRIVILEGE_TYPE = 'ALTER')
    OR EXISTS(
      SELECT 1 FROM information_schema.SCHEMA_PRIVILEGES
      WHERE TABLE_SCHEMA = DATABASE() AND PRIVILEGE_TYPE = 'ALTER'
    )
  ),
  'ALTER TABLE `outbox` ROW_FORMAT = REDUNDANT',
  'DO 0'
);
PREPARE `row_format` FROM @`row_format`;
EXECUTE `row_format`;
DEALLOCATE PREPARE `row_format`
