//! Pages of the served origins, in a browser.
//!
//! Rule: a page is told what it may read only when its origin is one that is served, of refusals too. A preflight comes by a
//! served host, as what it asks for must. Credentials that a browser adds by itself are not asked for.

use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method};
use tower_http::cors::{AllowOrigin, AllowPrivateNetwork, CorsLayer};

use super::calls::SESSION_ID;
use super::names::ServedNames;

/// How long a browser may keep the answer to a preflight: what it says changes with the settings only.
const MAX_AGE: Duration = Duration::from_secs(3600);
const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");

pub(crate) fn layer(names: &Arc<ServedNames>) -> CorsLayer {
    let is_served = |names: &Arc<ServedNames>| {
        let names = names.clone();
        move |_: &HeaderValue, request: &Parts| names.serves_page(&request.headers)
    };
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(is_served(names)))
        .allow_private_network(AllowPrivateNetwork::predicate(is_served(names)))
        .allow_methods([Method::POST, Method::GET, Method::DELETE, Method::OPTIONS])
        .allow_headers([
            CONTENT_TYPE,
            ACCEPT,
            AUTHORIZATION,
            HeaderName::from_static("x-api-key"),
            SESSION_ID,
            PROTOCOL_VERSION,
            HeaderName::from_static("mcp-method"),
            HeaderName::from_static("mcp-name"),
            HeaderName::from_static("last-event-id"),
        ])
        .expose_headers([SESSION_ID, WWW_AUTHENTICATE, PROTOCOL_VERSION])
        .max_age(MAX_AGE)
}
