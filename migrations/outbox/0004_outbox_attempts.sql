CREATE TABLE IF NOT EXISTS `outbox_attempts` (
  `id` BIGINT UNSIGNED NOT NULL AUTO_INCREMENT,
  `outbox_id` BIGINT UNSIGNED NOT NULL,
  `message_id` CHAR(36) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  `attempt` INT UNSIGNED NOT NULL,
  `class` VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  `error` VARCHAR(1000) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  `failed_at` DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  PRIMARY KEY (`id`),
  KEY `outbox_attempts_outbox_id` (`outbox_id`, `id`)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin
