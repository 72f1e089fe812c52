//! What a connection has still to send, and which of it may go now: at most one message of a key is on the wire.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::message::Message;

/// Messages not on the wire.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Go before the others: sent once with unknown outcome, or next of their key.
    first: VecDeque<Arc<Message>>,
    /// May go, in order.
    ready: VecDeque<Arc<Message>>,
    /// For each key of which a message is on its way (ready or on the wire), those that wait for it.
    keys: HashMap<String, VecDeque<Arc<Message>>>,
    /// Keys of which a message failed: what comes was claimed without knowledge of that, until somebody says otherwise.
    closed: HashSet<String>,
}

impl Queue {
    /// Adds a message as the last of its key, or as the last of all if it has none. False if its key is closed: then it
    /// is not added.
    #[must_use]
    pub(super) fn push(&mut self, message: Arc<Message>) -> bool {
        if let Some(key) = &message.key {
            if self.closed.contains(key) {
                return false;
            }
            match self.keys.get_mut(key) {
                Some(waiting) => {
                    waiting.push_back(message);
                    return true;
                }
                None => {
                    self.keys.insert(key.clone(), VecDeque::new());
                }
            }
        }
        self.ready.push_back(message);
        true
    }

    /// Takes messages of a closed key again: what comes from now on was claimed with knowledge of the failure.
    pub(super) fn open(&mut self, key: &str) {
        self.closed.remove(key);
    }

    /// The next message that may go.
    pub(super) fn pop(&mut self) -> Option<Arc<Message>> {
        self.first.pop_front().or_else(|| self.ready.pop_front())
    }

    /// Puts messages back that were taken out, in this order and before all others. Their keys stay taken.
    pub(super) fn put_back(&mut self, messages: Vec<Arc<Message>>) {
        for message in messages.into_iter().rev() {
            self.first.push_front(message);
        }
    }

    /// The message is stored: the next of its key may go.
    pub(super) fn stored(&mut self, message: &Message) {
        let Some(key) = &message.key else { return };
        match self.keys.get_mut(key).and_then(VecDeque::pop_front) {
            Some(next) => self.first.push_back(next),
            None => {
                self.keys.remove(key);
            }
        }
    }

    /// The message failed: its key is closed, and what waited behind it is returned in order.
    pub(super) fn failed(&mut self, message: &Message) -> VecDeque<Arc<Message>> {
        let Some(key) = &message.key else {
            return VecDeque::new();
        };
        self.closed.insert(key.clone());
        self.keys.remove(key).unwrap_or_default()
    }

    /// Takes everything out.
    pub(super) fn drain(&mut self) -> Vec<Arc<Message>> {
        let mut all: Vec<_> = self.first.drain(..).chain(self.ready.drain(..)).collect();
        all.extend(self.keys.drain().flat_map(|(_, waiting)| waiting));
        all
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    pub(crate) fn message(id: i64, key: Option<&str>) -> Arc<Message> {
        Arc::new(Message {
            id,
            connection: "default".into(),
            subject: "a.b".to_owned(),
            payload: "{}".into(),
            headers: Vec::new(),
            message_id: id.to_string(),
            key: key.map(str::to_owned),
            ttl_seconds: None,
            attempts: 0,
            webhook: None,
            unsure_since: None,
        })
    }

    fn ids(messages: impl IntoIterator<Item = Arc<Message>>) -> Vec<i64> {
        messages.into_iter().map(|message| message.id).collect()
    }

    fn all_that_may_go(queue: &mut Queue) -> Vec<i64> {
        ids(std::iter::from_fn(|| queue.pop()))
    }

    #[test]
    fn one_of_a_key_at_a_time_and_the_rest_in_order() {
        let mut queue = Queue::default();
        for (id, key) in [
            (1, Some("a")),
            (2, Some("a")),
            (3, None),
            (4, Some("b")),
            (5, Some("a")),
        ] {
            assert!(queue.push(message(id, key)));
        }
        assert_eq!(all_that_may_go(&mut queue), [1, 3, 4]);
        queue.stored(&message(3, None));
        assert!(queue.pop().is_none());
        queue.stored(&message(1, Some("a")));
        assert_eq!(all_that_may_go(&mut queue), [2]);
        queue.stored(&message(2, Some("a")));
        assert_eq!(all_that_may_go(&mut queue), [5]);
        queue.stored(&message(5, Some("a")));
        assert!(queue.push(message(6, Some("a"))));
        assert_eq!(all_that_may_go(&mut queue), [6]);
    }

    #[test]
    fn a_failure_closes_its_key_alone_until_it_is_known() {
        let mut queue = Queue::default();
        for (id, key) in [
            (1, Some("a")),
            (2, Some("a")),
            (3, Some("a")),
            (4, Some("b")),
            (5, Some("b")),
        ] {
            assert!(queue.push(message(id, key)));
        }
        assert_eq!(all_that_may_go(&mut queue), [1, 4]);
        assert_eq!(ids(queue.failed(&message(1, Some("a")))), [2, 3]);
        assert!(
            !queue.push(message(6, Some("a"))),
            "claimed without knowledge of the failure"
        );
        queue.open("a");
        assert!(queue.push(message(1, Some("a"))));
        assert_eq!(all_that_may_go(&mut queue), [1]);
        assert!(queue.failed(&message(9, None)).is_empty());
        assert_eq!(ids(queue.drain()), [5]);
    }

    #[test]
    fn what_is_put_back_goes_first_in_its_order() {
        let mut queue = Queue::default();
        for id in 1..=5 {
            assert!(queue.push(message(id, (id == 2).then_some("k"))));
        }
        let sent: Vec<_> = (0..3).filter_map(|_| queue.pop()).collect();
        assert!(queue.push(message(6, Some("k"))));
        queue.put_back(sent);
        assert_eq!(all_that_may_go(&mut queue), [1, 2, 3, 4, 5]);
        queue.stored(&message(2, Some("k")));
        assert_eq!(all_that_may_go(&mut queue), [6]);
    }
}
