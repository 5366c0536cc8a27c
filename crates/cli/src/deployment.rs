//! A deployment somewhere else, as a client without a handshake talks to it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

/// Longer than any call may take.
const PATIENCE: Duration = Duration::from_secs(150);

/// The MCP endpoint of a deployment, and the headers it wants (an API key).
pub(crate) struct Deployment {
    url: String,
    headers: Vec<(String, String)>,
    agent: ureq::Agent,
}

impl Deployment {
    /// `headers`: each `Name: value`.
    pub(crate) fn new(url: String, headers: &[String]) -> Result<Self, String> {
        let parse = |header: &String| {
            let parts = header.split_once(':').map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()));
            parts.ok_or_else(|| format!("--header: must be `Name: value`, not {header}"))
        };
        let headers = headers.iter().map(parse).collect::<Result<_, _>>()?;
        let config = ureq::Agent::config_builder()
            // A refusal before the body is read ends its connection: the next request must not find it.
            .max_idle_connections(0)
            .timeout_global(Some(PATIENCE))
            .http_status_as_error(false)
            .build();
        Ok(Self { url, headers, agent: config.into() })
    }

    /// Calls a tool and gives its result. Blocks.
    pub(crate) fn call(&self, tool: &str, arguments: &Value) -> Result<Value, String> {
        let message =
            json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}});
        let (status, body) = self.send(&BTreeMap::new(), &message.to_string())?;
        match told(&last_message(&body)) {
            Value::Null => Err(format!("{}: HTTP {status}: {body}", self.url)),
            result => Ok(result),
        }
    }

    /// Sends a body as it is: the status and the text of the answer. `headers` replace those of every request. Blocks.
    pub(crate) fn send(&self, headers: &BTreeMap<String, String>, body: &str) -> Result<(u16, String), String> {
        let usual = [("accept", "application/json, text/event-stream"), ("content-type", "application/json")];
        let own = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let mut request = self.agent.post(&self.url);
        for (name, value) in usual.into_iter().filter(|(name, _)| !headers.contains_key(*name)).chain(own) {
            request = request.header(name, value);
        }
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let failed = |error: ureq::Error| format!("{}: {error}", self.url);
        let mut response = request.send(body).map_err(failed)?;
        let status = response.status().as_u16();
        Ok((status, response.body_mut().read_to_string().map_err(failed)?))
    }
}

/// What a tool answered: the JSON text that its result begins with; `null` when there is none.
pub(crate) fn told(message: &Value) -> Value {
    let text = message["result"]["content"][0]["text"].as_str().unwrap_or_default();
    serde_json::from_str(text).unwrap_or_default()
}

/// The message of an answer: the last event of a stream, or the whole body; `null` when it is no message.
pub(crate) fn last_message(body: &str) -> Value {
    let data = body.lines().rev().find_map(|line| line.strip_prefix("data: ")).unwrap_or(body);
    serde_json::from_str(data).unwrap_or_default()
}
