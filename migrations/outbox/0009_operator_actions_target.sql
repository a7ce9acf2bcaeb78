SET @`add_index` = IF(
  EXISTS(
    SELECT 1 FROM information_schema.STATISTICS WHERE TABLE_SCHEMA = DATABASE()
    AND TABLE_NAME = 'operator_actions' AND INDEX_NAME = 'operator_actions_target'
  ),
  'DO 0',
  'ALTER TABLE `operator_actions` ADD INDEX `operator_actions_target` (`target`(150), `id`)'
);
PREPARE `add_index` FROM @`add_index`;
EXECUTE `add_index`;
DEALLOCATE PREPARE `add_index`
