//! Tells the client what a call prints while it runs, and that it still runs.
//!
//! Rule: who asked for progress hears of the call at least every few seconds, whatever it does. A slow client slows
//! nothing: lines that can't be sent in time are gathered, and past a bound left out; the answer has them anyway.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use protocol::{Event, EventSink, Stream};
use rmcp::model::{ProgressNotificationParam, ProgressToken};
use rmcp::{Peer, RoleServer};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

/// A call that has nothing to say is told of so often: clients that wait for news wait ten seconds or more.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Notes come no closer together.
const PACE: Duration = Duration::from_millis(100);
/// How long a line may stay unfinished before it is told as it stands.
const UNFINISHED: Duration = Duration::from_secs(1);
/// How long the answer waits for the last note before it: a slow client slows nothing.
const LAST_NOTE_PATIENCE: Duration = Duration::from_millis(100);
/// The longest note.
const MAX_GATHERED_BYTES: usize = 16 << 10;

/// Output on its way to the client.
pub(crate) struct Progress {
    news: Mutex<News>,
    arrived: Notify,
    ended: CancellationToken,
    has_sent: AtomicBool,
    heartbeat: Duration,
}

/// What was printed and not told.
#[derive(Default)]
struct News {
    /// Whole lines.
    lines: Vec<u8>,
    line: Line,
    stream: Option<Stream>,
}

/// The last line, as it stands.
#[derive(Default)]
struct Line {
    text: Vec<u8>,
    /// A carriage return is behind it: what comes next is written over it.
    returned: bool,
    /// Since when there is something of it that was not told.
    untold_since: Option<Instant>,
    /// It is told like a whole line: a carriage return is behind it, or was before it.
    is_due: bool,
}

impl Default for Progress {
    fn default() -> Self {
        Self::new(HEARTBEAT)
    }
}

impl Progress {
    /// `heartbeat`: how long nothing may be told.
    fn new(heartbeat: Duration) -> Self {
        let (arrived, ended) = (Notify::new(), CancellationToken::new());
        Self { news: Mutex::default(), arrived, ended, has_sent: AtomicBool::new(false), heartbeat }
    }

    /// Whether the client has been told anything.
    pub(crate) fn has_sent(&self) -> bool {
        self.has_sent.load(Ordering::Relaxed)
    }

    fn take_in(&self, event: &Event) {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Output { stream, bytes } => news.take_in(Some(*stream), bytes),
            Event::Notice(text) | Event::Package(text) => {
                news.take_in(None, text.as_bytes());
                news.take_in(None, b"\n");
            }
            // They come with the answer.
            Event::Display(_) | Event::Ended(_) => return,
        }
        drop(news);
        self.arrived.notify_one();
    }

    /// The call has ended: what is left is told at once, and then no more.
    pub(crate) fn end(&self) {
        self.ended.cancel();
    }

    /// Sends notes until [`Progress::end`].
    pub(crate) async fn forward(&self, peer: &Peer<RoleServer>, token: ProgressToken) {
        self.tell(|number, text| {
            let note = ProgressNotificationParam::new(token.clone(), f64::from(number)).with_message(text);
            async move { peer.notify_progress(note).await.is_ok() }
        })
        .await;
    }

    /// `send` takes a note and its number, and says whether there is still a client.
    async fn tell<Sent: Future<Output = bool>>(&self, mut send: impl FnMut(u32, String) -> Sent) {
        let all = async {
            let (started, mut last, mut number) = (Instant::now(), None, 0);
            while let Some(text) = self.next(started, last).await {
                number += 1;
                self.has_sent.store(true, Ordering::Relaxed);
                if !send(number, text).await {
                    return;
                }
                last = Some(Instant::now());
            }
        };
        let too_late = async {
            self.ended.cancelled().await;
            sleep(LAST_NOTE_PATIENCE).await;
        };
        tokio::select! {
            () = all => {}
            () = too_late => {}
        }
    }

    /// The next note, when it is time for it; none when the call has ended and all was told.
    async fn next(&self, started: Instant, last: Option<Instant>) -> Option<String> {
        let heartbeat = last.unwrap_or(started) + self.heartbeat;
        loop {
            let now = Instant::now();
            let ended = self.ended.is_cancelled();
            let due = {
                let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
                let due = news.due(now).map(|due| last.map_or(due, |last| due.max(last + PACE)));
                if ended || due.is_some_and(|due| due <= now) {
                    let text = news.take(now, ended);
                    if ended || text.is_some() {
                        return text;
                    }
                }
                due
            };
            if heartbeat <= now {
                return Some(format!("running, {} s", (now - started).as_secs()));
            }
            tokio::select! {
                () = sleep_until(due.filter(|due| *due > now).map_or(heartbeat, |due| due.min(heartbeat))) => {}
                () = self.arrived.notified() => {}
                () = self.ended.cancelled() => {}
            }
        }
    }
}

/// Where a call's events go; nowhere when nobody asked for progress. There is always room: what can't be told in time is
/// gathered, and past a bound left out.
pub(crate) struct Listener<'a>(pub(crate) Option<&'a Progress>);

impl EventSink for Listener<'_> {
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }

    fn push(&mut self, event: Event) {
        if let Some(progress) = self.0 {
            progress.take_in(&event);
        }
    }
}

impl News {
    /// `stream`: none for what the code itself has not written.
    fn take_in(&mut self, stream: Option<Stream>, bytes: &[u8]) {
        // What is written elsewhere begins a line of its own.
        if self.stream != stream && !self.line.text.is_empty() {
            self.end_line();
        }
        self.stream = stream;
        for piece in bytes.split_inclusive(|byte| matches!(byte, b'\n' | b'\r')) {
            match piece.split_last() {
                Some((b'\n', text)) => {
                    self.append(text);
                    self.end_line();
                }
                Some((b'\r', text)) => {
                    self.append(text);
                    self.line.returned = true;
                    self.line.is_due |= self.line.untold_since.is_some();
                }
                _ => self.append(piece),
            }
        }
    }

    fn append(&mut self, text: &[u8]) {
        if text.is_empty() {
            return;
        }
        if std::mem::take(&mut self.line.returned) {
            self.line.text.clear();
            self.line.is_due = true;
        }
        let room = MAX_GATHERED_BYTES.saturating_sub(self.lines.len() + self.line.text.len());
        if room > 0 {
            self.line.text.extend_from_slice(&text[..text.len().min(room)]);
            self.line.untold_since.get_or_insert_with(Instant::now);
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        // One that was told as it stands is no news.
        if line.untold_since.is_some() {
            self.lines.extend_from_slice(&line.text);
        }
        if (line.untold_since.is_some() || line.text.is_empty()) && self.lines.len() < MAX_GATHERED_BYTES {
            self.lines.push(b'\n');
        }
    }

    /// From when on there is something to tell.
    fn due(&self, now: Instant) -> Option<Instant> {
        if !self.lines.is_empty() || self.line.is_due {
            return Some(now);
        }
        self.line.untold_since.map(|since| since + UNFINISHED)
    }

    /// What is to be told; `all`: an unfinished line too, however new.
    fn take(&mut self, now: Instant, all: bool) -> Option<String> {
        let mut text = std::mem::take(&mut self.lines);
        let line = &mut self.line;
        if line.untold_since.is_some_and(|since| all || line.is_due || since + UNFINISHED <= now) {
            text.extend_from_slice(&line.text);
            (line.untold_since, line.is_due) = (None, false);
        }
        let text = String::from_utf8_lossy(&text);
        // A character may not have come as a whole.
        let text = text.trim_end_matches(['\n', '\r', char::REPLACEMENT_CHARACTER]);
        (!text.is_empty()).then(|| text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told, and after how many milliseconds, of a call that `prints`.
    async fn told<Printing: Future<Output = ()>>(
        prints: impl FnOnce(std::sync::Arc<Progress>) -> Printing,
    ) -> Vec<(u128, String)> {
        let progress = std::sync::Arc::new(Progress::new(Duration::from_secs(10)));
        let (started, notes) = (Instant::now(), Mutex::new(Vec::new()));
        let telling = progress.tell(|number, text| {
            let mut notes = notes.lock().expect("whole");
            notes.push((started.elapsed().as_millis(), text));
            assert_eq!(number as usize, notes.len(), "numbers increase");
            std::future::ready(true)
        });
        let printing = async {
            prints(progress.clone()).await;
            progress.end();
        };
        tokio::join!(telling, printing);
        notes.into_inner().expect("whole")
    }

    fn output(stream: Stream, bytes: &[u8]) -> Event {
        Event::Output { stream, bytes: bytes.to_vec().into() }
    }

    fn print(progress: &Progress, text: &str) {
        progress.take_in(&output(Stream::Stdout, text.as_bytes()));
    }

    fn texts(notes: &[(u128, String)]) -> Vec<&str> {
        notes.iter().map(|(_, text)| text.as_str()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_call_is_told_of_every_interval() {
        let notes = told(|_| sleep(Duration::from_secs(35))).await;
        let expected = [(10_000, "running, 10 s"), (20_000, "running, 20 s"), (30_000, "running, 30 s")];
        assert_eq!(notes, expected.map(|(at, text)| (at, text.to_owned())));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_printed_puts_the_next_heartbeat_off() {
        let notes = told(async |progress: std::sync::Arc<Progress>| {
            sleep(Duration::from_secs(7)).await;
            print(&progress, "line\n");
            sleep(Duration::from_secs(12)).await;
        });
        assert_eq!(notes.await, [(7000, "line".to_owned()), (17_000, "running, 17 s".to_owned())]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_bar_that_is_drawn_over_itself_is_told_as_it_stands() {
        for (head, tail) in [("", "\r"), ("\r", "")] {
            let notes = told(async |progress: std::sync::Arc<Progress>| {
                for percent in 0..5 {
                    print(&progress, &format!("{head}{percent} %{tail}"));
                    sleep(Duration::from_millis(300)).await;
                }
            });
            let notes = notes.await;
            assert_eq!(texts(&notes).last(), Some(&"4 %"), "{notes:?}");
            assert!(notes.len() >= 4 && notes.iter().all(|(_, text)| text.len() == 3), "{notes:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_that_stays_unfinished_is_told_and_not_told_again() {
        let notes = told(async |progress: std::sync::Arc<Progress>| {
            print(&progress, "loading");
            sleep(Duration::from_secs(3)).await;
            print(&progress, "\n");
            sleep(Duration::from_secs(3)).await;
            print(&progress, "fitting");
            sleep(Duration::from_secs(3)).await;
            print(&progress, " done\n");
            sleep(Duration::from_secs(3)).await;
            progress.take_in(&output(Stream::Stdout, b"caf\xc3"));
        });
        let notes = notes.await;
        assert_eq!(texts(&notes), ["loading", "fitting", "fitting done", "caf"], "{notes:?}");
        assert_eq!(notes[0].0, 1000);
    }

    #[tokio::test(start_paused = true)]
    async fn dots_are_news_until_the_longest_note() {
        let notes = told(async |progress: std::sync::Arc<Progress>| {
            for _ in 0..100 {
                print(&progress, &".".repeat(1 << 10));
                sleep(Duration::from_millis(200)).await;
            }
        });
        let notes = notes.await;
        assert!(notes.len() >= 4 && notes.iter().all(|(_, text)| text.len() <= MAX_GATHERED_BYTES), "{notes:?}");
        assert!(notes.windows(2).all(|pair| pair[1].0 - pair[0].0 <= 10_000), "{:?}", notes.iter().map(|note| note.0));
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_is_printed_there_are_ten_notes_a_second() {
        for ending in ["\n", "\r", ""] {
            let notes = told(async |progress: std::sync::Arc<Progress>| {
                for number in 0..5000 {
                    print(&progress, &format!("{number}{ending}"));
                    sleep(Duration::from_millis(1)).await;
                }
            });
            let notes = notes.await;
            assert!((4..=52).contains(&notes.len()), "{ending:?}: {}", notes.len());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn streams_do_not_share_a_line() {
        let notes = told(async |progress: std::sync::Arc<Progress>| {
            progress.take_in(&output(Stream::Stderr, b"10 %"));
            print(&progress, "epoch 1\n\n");
            progress.take_in(&Event::Notice("a note".to_owned()));
        });
        assert_eq!(texts(&notes.await), ["10 %\nepoch 1\n\na note"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_waits_a_little_for_the_last_note() {
        let progress = Progress::default();
        print(&progress, "a\n");
        let started = Instant::now();
        let end = async {
            sleep(Duration::from_secs(1)).await;
            progress.end();
        };
        tokio::join!(progress.tell(|_, _| std::future::pending()), end);
        assert_eq!(started.elapsed(), Duration::from_secs(1) + LAST_NOTE_PATIENCE);
    }
}
