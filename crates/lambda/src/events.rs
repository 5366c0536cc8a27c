//! The events of this environment, one after the other.
//!
//! Rule: there is never more than one poll, and what comes out of it is never dropped. The response lock asks for the next
//! event while a response is open; where the API does not refuse, that very poll is the one that is waited for when the
//! response has ended. So no event can be lost to a question, whatever the API does with it.

use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use crate::api::{Answer, Api, Event};

/// Gives events, and answers early questions for them.
#[derive(Debug)]
pub(crate) struct Events {
    pub(crate) api: Api,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    poll: Poll,
    /// Id and headers of the event that was given last.
    current: Option<(String, http::HeaderMap)>,
}

#[derive(Debug, Default)]
enum Poll {
    #[default]
    None,
    Asked(JoinHandle<Answer>),
    Taken(Event),
}

/// What came of asking while a response may be open.
#[derive(Debug)]
pub(crate) enum Early {
    /// The event that is being answered, once more: its response is not open yet.
    Same,
    /// The event after it, which is kept.
    Next(String),
    Other(Answer),
    /// Nothing yet; the poll stays.
    Silent,
}

impl Events {
    pub(crate) fn new(api: Api) -> Self {
        Self { api, state: Mutex::default() }
    }

    /// The next event, for as long as it takes.
    ///
    /// # Errors
    /// What the API says instead, when it was asked as it is meant to be.
    pub(crate) async fn next(&self) -> Result<Event, String> {
        let mut state = self.state.lock().await;
        loop {
            let (answer, asked_early) = match std::mem::take(&mut state.poll) {
                Poll::None => (self.api.next().await, false),
                Poll::Asked(asked) => (finished(asked.await), true),
                Poll::Taken(event) => (Answer::Event(event), false),
            };
            match answer {
                // A late answer to a question about the response before.
                Answer::Event(event) if asked_early && state.is_current(&event) => {}
                Answer::Event(event) => {
                    state.current = Some((event.id.clone(), event.headers.clone()));
                    return Ok(event);
                }
                answer if asked_early => tracing::warn!("an early question for the next event came to its end: {answer}"),
                answer => return Err(format!("the Runtime API was asked for the next event, and {answer}")),
            }
        }
    }

    /// Asks for the next event while the current one is being answered, and waits this long.
    pub(crate) async fn ask_early(&self, patience: std::time::Duration) -> Early {
        let mut state = self.state.lock().await;
        if matches!(state.poll, Poll::None) {
            let api = self.api.clone();
            state.poll = Poll::Asked(tokio::spawn(async move { api.next().await }));
        }
        let answer = match &mut state.poll {
            Poll::Asked(asked) => match tokio::time::timeout(patience, asked).await {
                Ok(answer) => finished(answer),
                Err(_) => return Early::Silent,
            },
            Poll::Taken(event) => return Early::Next(event.id.clone()),
            Poll::None => return Early::Silent,
        };
        state.poll = Poll::None;
        match answer {
            Answer::Event(event) if state.is_current(&event) => Early::Same,
            Answer::Event(event) => {
                let id = event.id.clone();
                state.poll = Poll::Taken(event);
                Early::Next(id)
            }
            answer => Early::Other(answer),
        }
    }
}

impl State {
    fn is_current(&self, event: &Event) -> bool {
        self.current.as_ref().is_some_and(|(id, headers)| event.is_same(id, headers))
    }
}

fn finished(answer: Result<Answer, tokio::task::JoinError>) -> Answer {
    answer.unwrap_or_else(|error| Answer::Failed(error.to_string()))
}
