//! What goes out of a connection and has not been taken yet.

/// Bytes to be sent. What was sent is not held: a client that always leaves something would otherwise
/// have everything kept that it was ever sent.
#[derive(Default)]
pub(super) struct Output {
    bytes: Vec<u8>,
    /// So many of them were sent; never more than half.
    sent: usize,
}

impl Output {
    /// Where more is appended.
    pub(super) fn end(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    pub(super) fn unsent(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// So many bytes were sent. Moving the rest costs no more than sending did, because there is never
    /// more left than was sent.
    pub(super) fn note_sent(&mut self, count: usize) {
        self.sent += count;
        if self.sent >= self.bytes.len() - self.sent {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Gives the buffer back if it is empty and larger than `keep`.
    pub(super) fn release(&mut self, keep: usize) {
        if self.bytes.is_empty() && self.bytes.capacity() > keep {
            self.bytes = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_is_not_held_however_long_something_is_left_to_send() {
        let mut output = Output::default();
        for round in 0..10_000 {
            while output.unsent().len() <= 64 * 1024 {
                output.end().extend_from_slice(&[b'x'; 16 * 1024]);
            }
            output.note_sent(1 + round % 40_000);
            assert!(!output.unsent().is_empty());
            assert!(output.bytes.capacity() <= 512 * 1024, "{round}: {}", output.bytes.capacity());
        }
    }

    #[test]
    fn all_bytes_come_out_in_their_order() {
        let mut output = Output::default();
        let (mut pushed, mut sent) = (0_u8, 0_u8);
        for round in 0..1_000_usize {
            for _ in 0..round % 7 {
                output.end().push(pushed);
                pushed = pushed.wrapping_add(1);
            }
            let count = output.unsent().len().min(round % 5);
            for byte in &output.unsent()[..count] {
                assert_eq!(*byte, sent);
                sent = sent.wrapping_add(1);
            }
            output.note_sent(count);
        }
        output.note_sent(output.unsent().len());
        output.release(0);
        assert_eq!((output.unsent(), output.bytes.capacity()), (&b""[..], 0));
    }
}
