INSERT IGNORE INTO `outbox_fence` (`id`, `n`) VALUES (1, 0)
