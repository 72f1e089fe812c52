//! What a server says, made harmless before it reaches tables, status and the log: without control characters, and short.

use super::Report;
use crate::error::RelayError;
use crate::message::StreamSynced;
use crate::message::{Outcome, Settled};

/// Most characters kept of anything a server says.
const MAX_CHARACTERS: usize = 2_000;

/// The text without control characters and no longer than 2,000 characters.
pub fn clean(text: String) -> String {
    let short = text.len() <= MAX_CHARACTERS;
    if short && text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return text;
    }
    shortened(&text, MAX_CHARACTERS)
}

/// The text without control characters and no longer than this; three dots say where it was cut.
pub(super) fn shortened(text: &str, most: usize) -> String {
    let mut characters = text.chars().map(|c| if is_harmful(c) { '\u{fffd}' } else { c });
    let mut kept: String = characters.by_ref().take(most).collect();
    if characters.next().is_some() {
        kept.pop();
        kept.push('…');
    }
    kept
}

/// Controls, and what turns the direction of text or breaks lines.
fn is_harmful(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

impl Report {
    /// The report with every text of a server's made harmless.
    pub(super) fn cleaned(self) -> Report {
        match self {
            Report::Settled(mut settled) => {
                settled.iter_mut().for_each(Settled::clean);
                Report::Settled(settled)
            }
            Report::Link {
                connection,
                state,
                detail,
            } => Report::Link {
                connection,
                state,
                detail: clean(detail),
            },
            Report::StreamSynced(synced) => Report::StreamSynced(StreamSynced {
                error: synced.error.map(clean),
                ..synced
            }),
        }
    }
}

impl Settled {
    fn clean(&mut self) {
        if let Outcome::Failed(error) = &mut self.outcome {
            error.texts().for_each(|text| *text = clean(std::mem::take(text)));
        }
    }
}

impl RelayError {
    /// The texts that a server may have said.
    fn texts(&mut self) -> impl Iterator<Item = &mut String> {
        let texts = match self {
            RelayError::NoStream {
                unmade: Some(unmade), ..
            } => [Some(&mut unmade.reason), Some(&mut unmade.stream)],
            RelayError::Denied { detail, .. } => [Some(detail), None],
            RelayError::Refused { description, .. } => [Some(description), None],
            RelayError::TooLargeForStream { stream, .. } => [Some(stream), None],
            RelayError::NotLookedUp(text)
            | RelayError::Unsendable(text)
            | RelayError::Panicked(text)
            | RelayError::Connection(text) => [Some(text), None],
            RelayError::AckTimeout { .. } | RelayError::NoStream { .. } | RelayError::TooLargeForServer { .. } => {
                [None, None]
            }
        };
        texts.into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_go_and_the_rest_stays() {
        assert_eq!(
            clean("a\0b\r\nc\u{1b}[2J\u{85}\u{202e}é漢".to_owned()),
            "a�b��c�[2J��é漢"
        );
        assert_eq!(clean("as it is".to_owned()), "as it is");
    }

    #[test]
    fn what_is_long_is_cut_at_a_character() {
        let long = clean("é".repeat(900_000));
        assert_eq!(long.chars().count(), MAX_CHARACTERS);
        assert!(long.ends_with("é…"));
        assert_eq!(clean("é".repeat(MAX_CHARACTERS)), "é".repeat(MAX_CHARACTERS));
    }

    #[test]
    fn every_text_of_an_error_is_cleaned() {
        let harmful = || "a\0".to_owned();
        for error in [
            RelayError::Denied {
                subject: "s".to_owned(),
                detail: harmful(),
                maybe_stored: false,
            },
            RelayError::Refused {
                code: 400,
                err_code: 10_000,
                description: harmful(),
            },
            RelayError::NotLookedUp(harmful()),
            RelayError::Panicked(harmful()),
            RelayError::Connection(harmful()),
        ] {
            let mut settled = Settled {
                id: 1,
                outcome: Outcome::Failed(error),
            };
            settled.clean();
            assert!(!format!("{settled:?}").contains("\\0"), "{settled:?}");
        }
    }
}
