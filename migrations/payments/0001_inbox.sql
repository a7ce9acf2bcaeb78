CREATE TABLE IF NOT EXISTS `inbox` (
  `message_id` VARBINARY(128) NOT NULL,
  `event_type` VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL,
  `aggregate_id` VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL,
  `exchange` VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL,
  `routing_key` VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL,
  `headers` MEDIUMTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL,
  `payload` LONGBLOB NOT NULL,
  `status` TINYINT UNSIGNED NOT NULL DEFAULT 1 COMMENT '1 received, 2 processed, 3 parked, 4 discarded',
  `attempts` INT UNSIGNED NOT NULL DEFAULT 0,
  `next_attempt_at` DATETIME(6) NULL,
  `last_error` VARCHAR(1000) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL,
  `deliveries` INT UNSIGNED NOT NULL DEFAULT 1 COMMENT 'every delivery, duplicates included',
  `received_at` DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  `processed_at` DATETIME(6) NULL,
  PRIMARY KEY (`message_id`),
  KEY `inbox_status_next_attempt_at` (`status`, `next_attempt_at`),
  KEY `inbox_status_received_at` (`status`, `received_at`)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin
