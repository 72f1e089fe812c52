//! The window: messages on the wire whose ack has not come, in the order in which they were sent.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::time::Instant;

use crate::message::Message;

/// One message on the wire.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) message: Arc<Message>,
    pub(super) sent: Instant,
    /// An answer came that was not JetStream's.
    pub(super) foreign: bool,
}

/// Messages on the wire by token. Tokens count up and are never used again in one window, so that an ack that comes
/// after its message was given up finds nothing.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// Token of the first slot.
    first: u64,
    /// Empty where the ack has come; the first slot is never empty.
    slots: VecDeque<Option<InFlight>>,
    live: usize,
}

impl Window {
    /// Adds a message as the newest; returns its token.
    pub(super) fn push(&mut self, message: Arc<Message>, sent: Instant) -> u64 {
        let token = self.first + self.slots.len() as u64;
        self.slots.push_back(Some(InFlight {
            message,
            sent,
            foreign: false,
        }));
        self.live += 1;
        token
    }

    /// Takes out the message of a token; none if it is not there any more.
    pub(super) fn take(&mut self, token: u64) -> Option<InFlight> {
        let index = usize::try_from(token.checked_sub(self.first)?).ok()?;
        let taken = self.slots.get_mut(index)?.take()?;
        self.live -= 1;
        self.trim();
        Some(taken)
    }

    /// The message of a token; none if it is not there any more.
    pub(super) fn get_mut(&mut self, token: u64) -> Option<&mut InFlight> {
        let index = usize::try_from(token.checked_sub(self.first)?).ok()?;
        self.slots.get_mut(index)?.as_mut()
    }

    /// Takes out, in order, the messages for which `wanted` holds.
    pub(super) fn take_where(&mut self, mut wanted: impl FnMut(&InFlight) -> bool) -> Vec<Arc<Message>> {
        let mut taken = Vec::new();
        for slot in &mut self.slots {
            if slot.as_ref().is_some_and(&mut wanted)
                && let Some(in_flight) = slot.take()
            {
                taken.push(in_flight.message);
            }
        }
        self.live -= taken.len();
        self.trim();
        taken
    }

    /// Whether this is the token of the oldest message on the wire.
    pub(super) fn is_oldest(&self, token: u64) -> bool {
        token == self.first && !self.slots.is_empty()
    }

    /// When the oldest message on the wire was sent.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.slots
            .front()
            .and_then(Option::as_ref)
            .map(|in_flight| in_flight.sent)
    }

    /// Messages on the wire.
    pub(super) fn len(&self) -> usize {
        self.live
    }

    /// Messages sent since the oldest that is still on the wire, itself included.
    pub(super) fn span(&self) -> usize {
        self.slots.len()
    }

    fn trim(&mut self) {
        while let Some(None) = self.slots.front() {
            self.slots.pop_front();
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::relay::queue::tests::message;

    #[test]
    fn an_ack_finds_its_message_once_whatever_the_order() {
        let mut window = Window::default();
        let now = Instant::now();
        let tokens: Vec<u64> = (1..=3).map(|id| window.push(message(id, None), now)).collect();
        assert_eq!(window.take(tokens[1]).unwrap().message.id, 2);
        assert_eq!((window.len(), window.span()), (2, 3));
        assert!(window.take(tokens[1]).is_none());
        assert_eq!(window.take(tokens[0]).unwrap().message.id, 1);
        assert_eq!((window.len(), window.span()), (1, 1));
        assert!(window.take(tokens[0]).is_none() && window.take(99).is_none());
        let next = window.push(message(4, None), now);
        assert!(next > tokens[2]);
        let rest: Vec<i64> = window.take_where(|_| true).iter().map(|message| message.id).collect();
        assert_eq!(rest, [3, 4]);
        assert!(window.oldest().is_none());
        assert!(window.take(next).is_none());
    }
}
