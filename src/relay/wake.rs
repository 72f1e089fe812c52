//! Reports on their way to the main thread, and the descriptor that tells it to look.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::Report;

/// The relay's end: sends reports and wakes the main thread.
#[derive(Debug, Clone)]
pub(super) struct Reporter {
    reports: Sender<Report>,
    bell: Arc<Bell>,
}

#[derive(Debug)]
struct Bell {
    /// At most one byte is on its way: set before it is written, cleared after it was read.
    rung: Arc<AtomicBool>,
    socket: UnixStream,
}

/// The main thread's end of the wake descriptor.
#[derive(Debug)]
pub(super) struct Wake {
    rung: Arc<AtomicBool>,
    socket: UnixStream,
}

/// A reporter, where its reports arrive, and the wake descriptor.
pub(super) fn channel() -> io::Result<(Reporter, Receiver<Report>, Wake)> {
    let (near, far) = UnixStream::pair()?;
    near.set_nonblocking(true)?;
    far.set_nonblocking(true)?;
    let rung = Arc::new(AtomicBool::new(false));
    let (sender, receiver) = unbounded();
    let bell = Arc::new(Bell {
        rung: rung.clone(),
        socket: far,
    });
    Ok((
        Reporter { reports: sender, bell },
        receiver,
        Wake { rung, socket: near },
    ))
}

impl Reporter {
    /// Sends a report, with what a server says in it made harmless. Nothing happens if the main thread is gone.
    pub(super) fn send(&self, report: Report) {
        if self.reports.send(report.cleaned()).is_ok() && !self.bell.rung.swap(true, Ordering::AcqRel) {
            // The socket is empty when the flag was clear, so that one byte always fits.
            let _ = (&self.bell.socket).write(&[1]);
        }
    }
}

impl Wake {
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// First the byte, then the flag; the caller drains the channel after that. A report sent in between finds
    /// either the flag set, and is in the channel already, or clear, and rings again.
    pub(super) fn clear(&self) {
        let mut bytes = [0; 16];
        while matches!((&self.socket).read(&mut bytes), Ok(n) if n == bytes.len()) {}
        self.rung.swap(false, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn readable(wake: &Wake) -> bool {
        // Nothing is lost by reading here: the flag is what decides about the next byte.
        !matches!((&wake.socket).read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    fn report() -> Report {
        Report::StreamSynced(Default::default())
    }

    #[test]
    fn one_byte_for_many_reports_and_again_after_clear() {
        let (reporter, reports, wake) = channel().unwrap();
        assert!(!readable(&wake));
        (0..100).for_each(|_| reporter.send(report()));
        wake.clear();
        assert_eq!(reports.try_iter().count(), 100);
        assert!(!readable(&wake));
        reporter.send(report());
        assert!(readable(&wake));
    }

    #[test]
    fn readable_when_the_relay_is_gone() {
        let (reporter, reports, wake) = channel().unwrap();
        drop(reporter);
        assert!(readable(&wake));
        assert!(reports.recv().is_err());
    }
}
