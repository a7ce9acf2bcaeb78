//! A sentence for a person, above the page's content.

/// How the sentence is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    /// It is done.
    Good,
    /// It is not done, and nobody is to blame: somebody else was first, or nothing matched.
    Warn,
}

/// What a person reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Notice {
    /// How it is meant.
    pub(super) tone: Tone,
    /// The sentence.
    pub(super) text: String,
}

impl Notice {
    /// It is done.
    pub(super) fn good(text: impl Into<String>) -> Self {
        let text = text.into();
        Self {
            tone: Tone::Good,
            text,
        }
    }

    /// It is not done, and nobody is to blame.
    pub(super) fn warn(text: impl Into<String>) -> Self {
        let text = text.into();
        Self {
            tone: Tone::Warn,
            text,
        }
    }

    /// The class in the style sheet.
    pub(super) fn class(&self) -> &'static str {
        match self.tone {
            Tone::Good => "good",
            Tone::Warn => "warn",
        }
    }
}
