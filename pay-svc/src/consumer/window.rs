//! How many messages the broker may send ahead: as many as fit into the buffer. No IO, no clock.
//!
//! Reading is bounded in bytes anyway; but what this process does not read waits in the broker's memory,
//! and RabbitMQ bounds that by a number of messages alone.

/// Before the size of any message is known.
const START: u16 = 16;
/// What a message takes beside its body, about: properties, headers, frames.
const BESIDE: usize = 512;

/// The prefetch, by the sizes of what has come.
#[derive(Debug)]
pub(super) struct Window {
    most: u16,
    bytes: usize,
    now: u16,
    /// Messages in a row with room for more.
    roomy: usize,
}

impl Window {
    pub(super) fn new(most: u16, bytes: usize) -> Self {
        Self {
            most,
            bytes,
            now: most.min(START),
            roomy: 0,
        }
    }

    /// The prefetch to request.
    pub(super) fn messages(&self) -> u16 {
        self.now
    }

    /// A batch has come. Returns whether another prefetch is called for.
    pub(super) fn observe(&mut self, messages: usize, bytes: usize) -> bool {
        let mean = (bytes / messages.max(1)).saturating_add(BESIDE);
        let fit = u16::try_from(self.bytes / mean).unwrap_or(u16::MAX);
        let fit = fit.clamp(1, self.most);
        if fit <= self.now {
            self.roomy = 0;
            // A new consumer for each message that is a little larger than the last would be no use.
            let crowded = fit < self.now.div_ceil(2);
            if crowded {
                self.now = fit;
            }
            return crowded;
        }
        self.roomy += messages;
        let roomy =
            self.roomy >= usize::from(self.now) && (fit == self.most || fit / 2 >= self.now);
        if roomy {
            self.now = fit.min(self.now.saturating_mul(8));
            self.roomy = 0;
        }
        roomy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    #[test]
    fn small_messages_open_the_window_in_a_few_steps() {
        let mut window = Window::new(1000, 64 * MIB);
        let mut steps = Vec::new();
        for _ in 0..1000 {
            if window.observe(16, 16 * 300) {
                steps.push(window.messages());
            }
        }
        assert_eq!(steps, [128, 1000]);
    }

    #[test]
    fn large_messages_close_it_at_once_down_to_one() {
        let mut window = Window::new(1000, 64 * MIB);
        assert!(window.observe(1, 8 * MIB));
        assert_eq!(window.messages(), 7);
        assert!(!window.observe(1, 8 * MIB));
        assert!(window.observe(1, 128 * MIB));
        assert_eq!(window.messages(), 1);
        assert!(!window.observe(1, 128 * MIB));
    }

    #[test]
    fn a_window_is_never_wider_than_the_setting() {
        let mut window = Window::new(1, 64 * MIB);
        assert_eq!(window.messages(), 1);
        assert!(!window.observe(1000, 1000));
    }
}
