//! What a client takes of JSON and events, by its Accept header.
//!
//! Rule: of the ranges that hold a type the narrowest decides, and with a weight of 0 it forbids. A client that says nothing
//! takes anything; one that takes neither is answered in JSON all the same.

use http::HeaderMap;
use http::header::ACCEPT;

/// What may be sent to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takes {
    /// One JSON document.
    Json,
    /// Whichever suits.
    Either,
    /// Events.
    Events,
}

/// A type that can be sent, and the names of its kind.
const JSON: [&str; 2] = ["application/json", "application/*"];
const EVENTS: [&str; 2] = ["text/event-stream", "text/*"];
const ANY: &str = "*/*";

impl Takes {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let ranges = values.flat_map(|value| value.split(',')).map(range).filter(|(range, _)| !range.is_empty());
        let ranges = ranges.collect::<Vec<_>>();
        let takes = |[exact, kind]: [&str; 2]| {
            let mut narrowest_first = [exact, kind, ANY].into_iter();
            narrowest_first.find_map(|wanted| {
                let weights = ranges.iter().filter(|(range, _)| range == wanted).map(|(_, weight)| *weight);
                weights.reduce(f32::max).map(|weight| weight > 0.0)
            })
        };
        match (takes(JSON).unwrap_or(ranges.is_empty()), takes(EVENTS).unwrap_or(ranges.is_empty())) {
            (true, true) => Self::Either,
            (false, true) => Self::Events,
            (_, false) => Self::Json,
        }
    }
}

/// A media range and its weight; a weight that can't be read is none.
fn range(entry: &str) -> (String, f32) {
    let mut parts = entry.split(';').map(str::trim);
    let range = parts.next().unwrap_or_default().to_ascii_lowercase();
    let weight = parts.find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("q").then(|| value.trim().parse().ok()).flatten()
    });
    (range, weight.unwrap_or(1.0))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn ranges_and_weights_are_read_as_browsers_and_sdks_write_them() {
        for (values, takes) in [
            (&[][..], Takes::Either),
            (&[""], Takes::Either),
            (&["*/*"], Takes::Either),
            (&["application/json"], Takes::Json),
            (&["application/*"], Takes::Json),
            (&["application/json, text/event-stream"], Takes::Either),
            (&["APPLICATION/JSON, TEXT/EVENT-STREAM"], Takes::Either),
            (&["application/json", "text/event-stream"], Takes::Either),
            (&["text/event-stream"], Takes::Events),
            (&["Text/Event-Stream ; charset=utf-8"], Takes::Events),
            (&["text/*"], Takes::Events),
            (&["text/event-stream;q=0"], Takes::Json),
            (&["text/event-stream; Q=0.000, */*"], Takes::Json),
            (&["*/*;q=0.1, application/json;q=0"], Takes::Events),
            (&["text/event-stream, */*;q=0"], Takes::Events),
            (&["application/json;q=0.5, text/event-stream;q=0.9"], Takes::Either),
            (&["application/json;q=0, application/json"], Takes::Json),
            (&["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"], Takes::Either),
            (&["text/html"], Takes::Json),
            (&["nonsense"], Takes::Json),
            (&["*/*;q=0"], Takes::Json),
            (&["text/event-stream;q=lots"], Takes::Events),
        ] {
            let headers = values.iter().map(|value| (ACCEPT, HeaderValue::from_static(value))).collect();
            assert_eq!(Takes::of(&headers), takes, "{values:?}");
        }
    }
}
