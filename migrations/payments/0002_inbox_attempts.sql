CREATE TABLE IF NOT EXISTS `inbox_attempts` (
  `id` BIGINT UNSIGNED NOT NULL AUTO_INCREMENT,
  `message_id` VARBINARY(128) NOT NULL,
  `attempt` INT UNSIGNED NOT NULL,
  `class` VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  `error` VARCHAR(1000) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  `failed_at` DATETIME(6) NOT NULL DEFAULT (UTC_TIMESTAMP(6)),
  PRIMARY KEY (`id`),
  KEY `inbox_attempts_message_id` (`message_id`, `id`)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin
