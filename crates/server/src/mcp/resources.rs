//! What can be read without calling a tool.

use protocol::shortened;
use rmcp::model::{ErrorData, ListResourcesResult, ReadResourceResult, Resource, ResourceContents};
use serde_json::json;

use crate::service::Service;

const PACKAGES: &str = "code-interpreter://packages";
const ENVIRONMENT: &str = "code-interpreter://environment";
const JSON: &str = "application/json";

/// All of them.
pub(crate) fn list() -> ListResourcesResult {
    let resource = |uri, name, title, description| {
        Resource::new(uri, name).with_title(title).with_description(description).with_mime_type(JSON)
    };
    ListResourcesResult::with_all_items(vec![
        resource(PACKAGES, "packages", "Preinstalled packages", "What code can import, with versions and the names to import."),
        resource(ENVIRONMENT, "environment", "Environment", "Python version, platform, limits and the protections that hold."),
    ])
}

/// What one has in it.
///
/// # Errors
/// When there is none with this URI.
pub(crate) fn read(service: &Service, uri: &str) -> Result<ReadResourceResult, ErrorData> {
    let text = match uri {
        PACKAGES => serde_json::to_string_pretty(&service.list_packages()),
        ENVIRONMENT => serde_json::to_string_pretty(&service.environment()),
        other => {
            let message = format!("there is no resource {:?}; there are {PACKAGES} and {ENVIRONMENT}", shortened(other));
            return Err(ErrorData::resource_not_found(message, Some(json!({"uri": shortened(other)}))));
        }
    };
    let text = text.map_err(|error| ErrorData::internal_error(error.to_string(), None))?;
    Ok(ReadResourceResult::new(vec![ResourceContents::text(text, uri).with_mime_type(JSON)]))
}
