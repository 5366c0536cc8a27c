//! A deployment somewhere else, as a client without a handshake talks to it.

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
        let config = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false).build();
        Ok(Self { url, headers, agent: config.into() })
    }

    /// Calls a tool and gives its structured result. Blocks.
    pub(crate) fn call(&self, tool: &str, arguments: &Value) -> Result<Value, String> {
        let message =
            json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}});
        let mut request = self.agent.post(&self.url).header("accept", "application/json, text/event-stream");
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let mut response = request.send_json(&message).map_err(|error| format!("{}: {error}", self.url))?;
        let status = response.status();
        let body = response.body_mut().read_to_string().map_err(|error| format!("{}: {error}", self.url))?;
        let data = body.lines().rev().find_map(|line| line.strip_prefix("data: ")).unwrap_or(&body);
        let answer: Value = serde_json::from_str(data).map_err(|_| format!("{}: HTTP {status}: {body}", self.url))?;
        match &answer["result"]["structuredContent"] {
            Value::Null => Err(format!("{}: HTTP {status}: {answer}", self.url)),
            result => Ok(result.clone()),
        }
    }
}
