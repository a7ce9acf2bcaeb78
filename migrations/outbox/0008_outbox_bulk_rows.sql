CREATE TABLE IF NOT EXISTS `outbox_bulk_rows` (
  `bulk_id` BIGINT UNSIGNED NOT NULL,
  `seq` INT UNSIGNED NOT NULL COMMENT 'from 0, in the order in which they go',
  `row_key` BIGINT UNSIGNED NOT NULL COMMENT 'the id in the outbox',
  `due_at` DATETIME(6) NULL COMMENT 'the next_attempt_at it was given; NULL while the bulk holds it back',
  PRIMARY KEY (`bulk_id`, `seq`),
  KEY `outbox_bulk_rows_row_key` (`row_key`, `bulk_id`)
) ENGINE = InnoDB
