//! The tools that the MCP conformance suite calls by name. Only `conformance-server` has them, never what is shipped.
//!
//! Rule: what the product can say, a fixture says through the product: it is a cell, and its answer is the cell's. Only what
//! no cell says is written here.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use protocol::Arguments;
use rmcp::RoleServer;
use rmcp::model::{CallToolResult, ContentBlock, ErrorData, JsonObject, ReadResourceResult, ResourceContents, Tool};
use rmcp::service::RequestContext;
use serde_json::value::to_raw_value;
use serde_json::{Value, json};

use super::McpServer;

const SCHEMA_TOOL: &str = "json_schema_2020_12_tool";
const AUDIO: &str = "test_audio_content";

/// Fixtures that are cells.
const CELLS: [(&str, &str); 8] = [
    ("test_simple_text", "'This is a simple text response for testing.'"),
    ("test_image_content", "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"),
    (
        "test_multiple_content_types",
        "import json, matplotlib.pyplot as plt\nprint('Multiple content types test:')\nplt.plot([1, 2])\nplt.show()\n\
         json.dump({'test': 'data', 'value': 123}, open('mixed.json', 'w'))",
    ),
    ("test_embedded_resource", "open('embedded.txt', 'w').write('This is an embedded resource content.')"),
    ("test_error_handling", "raise ValueError('This tool intentionally returns an error for testing')"),
    ("test_tool_with_progress", "import time\nfor i in (0, 50, 100):\n    print(f'{i}/100', flush=True)\n    time.sleep(.1)"),
    // Whatever code does, nothing but its output goes out while it runs.
    ("test_logging_tool", "import logging\nlogging.warning('This is no log message of the protocol.')"),
    ("test_streaming_elicitation", "for i in range(3):\n    print(i, flush=True)"),
];

/// What the suite finds in the tool list.
pub(super) fn tools() -> Vec<Tool> {
    let plain = CELLS.iter().map(|(name, _)| *name).chain([AUDIO]);
    let no_arguments = || object(json!({"type": "object", "properties": {}, "additionalProperties": false}));
    let plain = plain.map(|name| Tool::new(name, "A fixture of the MCP conformance suite.", no_arguments()));
    plain.chain([Tool::new(SCHEMA_TOOL, "Tool with JSON Schema 2020-12 features", every_keyword())]).collect()
}

/// True when this is a fixture's name.
pub(super) fn has(name: &str) -> bool {
    name == AUDIO || name == SCHEMA_TOOL || CELLS.iter().any(|(known, _)| *known == name)
}

/// What the suite reads.
pub(super) fn resource(uri: &str) -> Option<ReadResourceResult> {
    let contents = match uri {
        "test://static-text" => {
            ResourceContents::text("This is the content of the static text resource.", uri).with_mime_type("text/plain")
        }
        "test://static-binary" => ResourceContents::blob(BASE64.encode(silence()), uri).with_mime_type("audio/wav"),
        _ => return None,
    };
    Some(ReadResourceResult::new(vec![contents]))
}

impl McpServer {
    /// The answer of a fixture.
    pub(super) async fn fixture(&self, name: &str, context: &RequestContext<RoleServer>) -> Result<CallToolResult, ErrorData> {
        if let Some((_, code)) = CELLS.iter().find(|(known, _)| *known == name) {
            let code = to_raw_value(code).map_err(|error| internal(&error))?;
            let arguments = Arguments::new([("code".to_owned(), code)]).map_err(|error| internal(&error))?;
            return self.execute(arguments, context).await;
        }
        let block = match name {
            AUDIO => ContentBlock::audio(BASE64.encode(silence()), "audio/wav"),
            _ => ContentBlock::text("It was called."),
        };
        Ok(CallToolResult::success(vec![block]))
    }
}

fn internal(error: &impl ToString) -> ErrorData {
    ErrorData::internal_error(error.to_string(), None)
}

fn object(value: Value) -> JsonObject {
    serde_json::from_value(value).unwrap_or_default()
}

/// A WAV file of two silent samples.
fn silence() -> Vec<u8> {
    let mut file = b"RIFF\x26\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0".to_vec();
    file.extend([8000_u32.to_le_bytes(), 8000_u32.to_le_bytes()].as_flattened());
    file.extend(b"\x01\0\x08\0data\x02\0\0\0\x80\x80");
    file
}

/// The schema that SEP-1613 and SEP-2106 want a listing to keep.
fn every_keyword() -> JsonObject {
    object(json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "$defs": {
            "address": {
                "$anchor": "addressDef",
                "type": "object",
                "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
            },
        },
        "properties": {
            "name": {"type": "string"},
            "address": {"$ref": "#/$defs/address"},
            "contactMethod": {"type": "string", "enum": ["phone", "email"]},
            "phone": {"type": "string"},
            "email": {"type": "string"},
        },
        "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
        "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
        "then": {"required": ["phone"]},
        "else": {"required": ["email"]},
        "additionalProperties": false,
    }))
}
