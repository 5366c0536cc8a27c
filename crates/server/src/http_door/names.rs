//! Which names a request may come by (Host) and from which pages (Origin): what keeps web pages from a server on the
//! loopback.
//!
//! Rule: a header is read strictly, as browsers write it, and what can't be read is refused; a setting that could match
//! nothing is refused at start.

use std::fmt;
use std::net::Ipv6Addr;

use http::header::{HOST, HeaderName, ORIGIN};
use http::{HeaderMap, StatusCode, Uri};
use protocol::shortened;

use crate::refusal::Refusal;

/// A host, and a port where one is named.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Authority {
    host: String,
    port: Option<u16>,
}

/// A page's scheme, host and port; the port is the scheme's own where none is written.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    scheme: String,
    host: String,
    port: Option<u16>,
}

/// One of the hosts that are served.
#[derive(Clone, Debug, PartialEq, Eq)]
enum HostRule {
    Any,
    /// At every port where it names none.
    Is(Authority),
}

/// One of the origins that are served.
#[derive(Clone, Debug, PartialEq, Eq)]
enum OriginRule {
    Any,
    Null,
    Is(Origin),
    /// The same at every port.
    AnyPort(Origin),
}

/// The names that are served.
#[derive(Clone, Debug)]
pub struct ServedNames {
    hosts: Vec<HostRule>,
    origins: Vec<OriginRule>,
}

impl ServedNames {
    /// Reads the settings `ALLOWED_HOSTS` and `ALLOWED_ORIGINS`.
    ///
    /// # Errors
    /// The first entry that could match nothing, and what would be right.
    pub fn new(hosts: &[String], origins: &[String]) -> Result<Self, String> {
        let given = |list: &[String]| {
            list.iter().map(|entry| entry.trim().to_owned()).filter(|entry| !entry.is_empty()).collect::<Vec<_>>()
        };
        let host = |entry: &String| {
            host_rule(entry).ok_or_else(|| {
                format!(
                    "ALLOWED_HOSTS: must be names such as app.example.com or app.example.com:8443, or * for all, not {entry:?}"
                )
            })
        };
        let origin = |entry: &String| {
            origin_rule(entry).ok_or_else(|| {
                format!("ALLOWED_ORIGINS: must be origins such as https://app.example.com or http://localhost:*, null, or * for all, not {entry:?}")
            })
        };
        Ok(Self {
            hosts: given(hosts).iter().map(host).collect::<Result<_, _>>()?,
            origins: given(origins).iter().map(origin).collect::<Result<_, _>>()?,
        })
    }

    /// Serves every host, where something before the server answers to its own names only.
    #[must_use]
    pub fn of_any_host(self) -> Self {
        Self { hosts: vec![HostRule::Any], ..self }
    }

    /// Serves this host too.
    #[must_use]
    pub fn and_host(mut self, host: &str) -> Self {
        self.hosts.extend(host_rule(host).filter(|rule| *rule != HostRule::Any));
        self
    }

    /// # Errors
    /// The request comes by a name or from a page that is not served.
    pub(crate) fn admit(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
        if !self.hosts.contains(&HostRule::Any) {
            let written = only(headers, &HOST)?;
            let absolute = uri.authority().map(http::uri::Authority::as_str);
            if written.is_none() && absolute.is_none() {
                return Err(Refusal::forbidden(StatusCode::BAD_REQUEST, "Bad Request: the Host header is missing".to_owned()));
            }
            for host in written.into_iter().chain(absolute) {
                if !authority(host).is_some_and(|host| self.hosts.iter().any(|rule| rule.serves(&host))) {
                    return Err(refuse("Host header", host, "ALLOWED_HOSTS names those that are"));
                }
            }
        }
        let Some(origin) = only(headers, &ORIGIN)? else { return Ok(()) };
        if self.origins.iter().any(|rule| rule.serves(origin)) {
            return Ok(());
        }
        Err(refuse("Origin", origin, "ALLOWED_ORIGINS names those that are"))
    }

    /// Whether the request names a page that is served, whatever else is wrong with it.
    pub(crate) fn serves_page(&self, headers: &HeaderMap) -> bool {
        let mut pages = headers.get_all(ORIGIN).iter();
        let (Some(page), None) = (pages.next(), pages.next()) else { return false };
        page.to_str().is_ok_and(|page| self.origins.iter().any(|rule| rule.serves(page)))
    }
}

impl HostRule {
    fn serves(&self, host: &Authority) -> bool {
        match self {
            Self::Any => true,
            Self::Is(rule) => rule.host == host.host && (rule.port.is_none() || rule.port == host.port),
        }
    }
}

impl OriginRule {
    fn serves(&self, written: &str) -> bool {
        let origin = page(written).map(of_page);
        match self {
            Self::Any => true,
            Self::Null => written == "null",
            Self::Is(rule) => origin.as_ref() == Some(rule),
            Self::AnyPort(rule) => {
                origin.is_some_and(|origin| (origin.scheme, origin.host) == (rule.scheme.clone(), rule.host.clone()))
            }
        }
    }
}

/// The one value of a header that may be there once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Refusal> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().map(|value| value.to_str().map_err(|_| refuse(name, "other than ASCII", "one name is")));
    match values.next() {
        None => value.transpose(),
        Some(_) => Err(refuse(name, "more than one", "one is")),
    }
}

fn refuse(what: impl fmt::Display, got: &str, rule: &str) -> Refusal {
    let message = format!("Forbidden: {what} {:?} is not served; {rule}", shortened(got));
    tracing::warn!("{message}");
    Refusal::forbidden(StatusCode::FORBIDDEN, message)
}

fn host_rule(entry: &str) -> Option<HostRule> {
    if entry == "*" {
        return Some(HostRule::Any);
    }
    // As people write it, without the brackets that a port would need.
    let bare = entry.parse::<Ipv6Addr>().ok().map(|address| Authority { host: format!("[{address}]"), port: None });
    bare.or_else(|| authority(entry)).map(HostRule::Is)
}

fn origin_rule(entry: &str) -> Option<OriginRule> {
    match entry {
        "*" => Some(OriginRule::Any),
        "null" => Some(OriginRule::Null),
        _ => match entry.strip_suffix(":*") {
            Some(entry) => page(entry).filter(|(_, place)| place.port.is_none()).map(of_page).map(OriginRule::AnyPort),
            None => page(entry).map(of_page).map(OriginRule::Is),
        },
    }
}

/// `scheme://host` with or without a port, and nothing else.
fn page(text: &str) -> Option<(String, Authority)> {
    let (scheme, rest) = text.split_once("://")?;
    let scheme = scheme.to_ascii_lowercase();
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_lowercase())
        && scheme.chars().all(|letter| letter.is_ascii_alphanumeric() || "+-.".contains(letter));
    is_scheme.then_some(())?;
    Some((scheme, authority(rest)?))
}

fn of_page((scheme, Authority { host, port }): (String, Authority)) -> Origin {
    let port = port.or(match scheme.as_str() {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    });
    Origin { scheme, host, port }
}

/// A name, an IPv4 address or an IPv6 address in brackets, with or without a port, and nothing else.
fn authority(text: &str) -> Option<Authority> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            let host = format!("[{}]", address.parse::<Ipv6Addr>().ok()?);
            (host, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host.to_ascii_lowercase(), Some(port)),
            None => (text.to_ascii_lowercase(), None),
        },
    };
    let of_name = |letter: char| letter.is_ascii_alphanumeric() || "-._".contains(letter);
    if host.is_empty() || host.starts_with('.') || !(host.starts_with('[') || host.chars().all(of_name)) {
        return None;
    }
    let port = port.map(|port| if port.bytes().all(|digit| digit.is_ascii_digit()) { port.parse().ok() } else { None });
    match port {
        Some(None) => None,
        port => Some(Authority { host, port: port.flatten() }),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn names(hosts: &[&str], origins: &[&str]) -> Result<ServedNames, String> {
        let owned = |list: &[&str]| list.iter().map(|entry| (*entry).to_owned()).collect::<Vec<_>>();
        ServedNames::new(&owned(hosts), &owned(origins))
    }

    fn serves(names: &ServedNames, headers: &[(HeaderName, &'static str)]) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, HeaderValue::from_static(value));
        }
        names.admit(&Uri::from_static("/mcp"), &map).is_ok()
    }

    #[test]
    fn hosts_are_read_strictly() {
        let usual = names(&["localhost", "127.0.0.1", "::1", "App.example:8443"], &[]).expect("names");
        for host in ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]", "[0:0::1]:8000", "app.example:8443"] {
            assert!(serves(&usual, &[(HOST, host)]), "{host}");
        }
        for host in [
            "[::1].evil.com",
            "[::1]evil",
            "localhost:1.evil.com",
            "localhost:abc",
            "localhost:",
            "localhost:+1",
            "localhost:65536",
            "localhost@evil.com",
            "evil.com/localhost",
            "localhost.evil.com",
            "localhost, evil.com",
            "::1",
            "[::1",
            "",
            "app.example",
            "app.example:1",
            "evil.com#localhost",
            "127.0.0.1.evil.com",
            "[::1%25eth0]",
            "localhost ",
        ] {
            assert!(!serves(&usual, &[(HOST, host)]), "{host:?}");
        }
        assert!(!serves(&usual, &[]));
        assert!(!serves(&usual, &[(HOST, "localhost"), (HOST, "evil.com")]));
        assert!(!serves(&usual, &[(HOST, "localhost"), (HOST, "localhost")]));
        let absolute = Uri::from_static("http://evil.com/mcp");
        let headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static("localhost"))]);
        assert!(usual.admit(&absolute, &headers).is_err());
        assert!(serves(&usual.of_any_host(), &[(HOST, "evil.com")]));
    }

    #[test]
    fn origins_are_read_strictly() {
        let usual = names(&["*"], &["http://localhost:*", "http://[::1]:*", "https://app.example", "vscode-webview://abc"])
            .expect("names");
        for origin in [
            "http://localhost",
            "http://localhost:5173",
            "http://[::1]:1",
            "https://app.example",
            "https://app.example:443",
            "vscode-webview://abc",
        ] {
            assert!(serves(&usual, &[(ORIGIN, origin)]), "{origin}");
        }
        for origin in [
            "http://localhost:1.evil.com",
            "http://localhost:abc",
            "https://localhost",
            "http://[::1].evil.com",
            "null",
            "",
            "localhost",
            "http://localhost/",
            "http://localhost:1/a",
            "http://a@localhost",
            "https://app.example:8443",
            "http://app.example",
            "http://",
            "http://localhost http://evil.com",
            "http://localhost, http://evil.com",
            "://localhost",
            "vscode-webview://abc.evil",
        ] {
            assert!(!serves(&usual, &[(ORIGIN, origin)]), "{origin:?}");
        }
        assert!(serves(&usual, &[]));
        assert!(!serves(&usual, &[(ORIGIN, "http://localhost"), (ORIGIN, "http://evil.com")]));
        assert!(serves(&names(&["*"], &["null"]).expect("names"), &[(ORIGIN, "null")]));
        assert!(serves(&names(&["*"], &["*"]).expect("names"), &[(ORIGIN, "http://evil.com")]));
    }

    #[test]
    fn settings_that_match_nothing_are_refused_in_words() {
        for host in ["*.example.com", "https://x", ".example.com", "a/b", "a b", "[::1"] {
            let error = names(&["localhost", host], &[]).expect_err(host);
            assert!(
                error.starts_with("ALLOWED_HOSTS: must be names such as ") && error.ends_with(&format!("{host:?}")),
                "{error}"
            );
        }
        for origin in
            ["app.example", "https://*.example.com", "https://app.example/", "http://a:1:*", "http://[::1]:1:*", "https://"]
        {
            let error = names(&[], &[origin]).expect_err(origin);
            assert!(
                error.starts_with("ALLOWED_ORIGINS: must be origins such as ") && error.ends_with(&format!("{origin:?}")),
                "{error}"
            );
        }
        assert!(names(&["", " localhost "], &[""]).is_ok());
    }
}
