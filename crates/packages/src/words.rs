//! What an installer's failure means, read from its words.
//!
//! Rule: neither uv nor pip says it in a form for programs, so their words are taken as the versions in [`READ_FOR`] write
//! them. Tests hold that these are the versions in use, and run both into each failure. What nobody knows is `failed`.

use crate::error::Reason;

/// The versions whose words stand here.
#[cfg(test)]
const READ_FOR: [&str; 2] = ["uv 0.13.9", "pip-26.3"];

/// The first that is found counts: what stands further up is the more exact.
const WORDS: &[(Reason, &[&str])] = &[
    (Reason::DirectReference, &["direct reference: ", "included as a URL dependency"]),
    (Reason::HashMismatch, &["Hash mismatch", "DO NOT MATCH THE HASHES", "hash mismatch"]),
    (
        Reason::NoWheel,
        &[
            "no wheels",
            "no usable wheels",
            "no matching wheel",
            "Building source distributions",
            "building from source is disabled",
        ],
    ),
    (
        Reason::IndexUnreachable,
        &[
            "error sending request",
            "Failed to fetch",
            "Connection refused",
            "ConnectionError",
            "ConnectTimeout",
            "timed out",
            "request or response body error",
            "error decoding response body",
            "IncompleteRead",
            "Failed to download",
            "Max retries exceeded",
            "connection error: ",
            "There was a problem confirming the ssl certificate",
            "(401 Unauthorized)",
            "401 Client Error",
            "403 Forbidden",
            "403 Client Error",
            "Server Error",
            "network connectivity",
        ],
    ),
    (
        Reason::NotFound,
        &[
            "not found in the package registry",
            "No matching distribution found",
            "there is no version of",
            "there are no versions of",
            "was not found in the",
            "only the following versions",
        ],
    ),
    (Reason::NoSolution, &["No solution found", "ResolutionImpossible"]),
];

/// What it is that an installer says.
pub(crate) fn reason_of(said: &str) -> Reason {
    // " @ " stands in a requirement before an address and nowhere else.
    if said.contains(" @ ") && said.contains("://") {
        return Reason::DirectReference;
    }
    let found = WORDS.iter().find(|(_, words)| words.iter().any(|word| said.contains(word)));
    found.map_or(Reason::Failed, |(reason, _)| *reason)
}

/// The same for a person.
pub(crate) fn explained(reason: Reason) -> &'static str {
    match reason {
        Reason::DirectReference => "a package needs another from an address; only names on the package index are taken",
        Reason::HashMismatch => "a file is not the one its hash promises, and was not installed",
        Reason::NoWheel => "there is no wheel of it for this Python and machine, and sources are never built here",
        Reason::IndexUnreachable => "the package index did not answer, refused or broke off",
        Reason::NotFound => "the package index has no such package or version with a wheel for this machine",
        Reason::NoSolution => "the requirements can't be met together",
        _ => "the installer failed",
    }
}

/// Why pages of the index could not be had: pip says so in its log alone, and to its user that there is no such package.
pub(crate) fn failed_fetches(log: &str) -> String {
    let failed = |line: &&str| line.contains("Could not fetch URL") && !line.contains("404 Client Error");
    log.lines().filter(failed).flat_map(|line| [line, "\n"]).collect()
}

/// The lines that tell a person something: at the end of a traceback, else at the beginning.
pub(crate) fn detail(said: &str, reason: Reason) -> String {
    let lines = said.lines().map(without_label).filter(|line| is_detail(line)).collect::<Vec<_>>();
    let lines = if reason == Reason::Failed { &lines[lines.len().saturating_sub(2)..] } else { &lines[..lines.len().min(4)] };
    lines.join(" ").chars().filter(|c| !c.is_control()).take(600).collect()
}

fn without_label(line: &str) -> &str {
    let labels =
        ["error:", "ERROR:", "cause:", "No solution found when resolving dependencies", "\u{d7}", "\u{2570}\u{2500}\u{25b6}"];
    labels.iter().fold(line.trim(), |line, label| line.strip_prefix(label).unwrap_or(line).trim())
}

fn is_detail(line: &str) -> bool {
    const OF_PROGRESS: [&str; 6] = ["Using ", "Resolved ", "Downloading ", "Collecting ", "Looking in ", "hint:"];
    !line.is_empty() && OF_PROGRESS.iter().all(|start| !line.starts_with(start))
}

/// Replaces whatever looks like `scheme://…` up to the next blank, quote or bracket.
pub(crate) fn without_addresses(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let start = rest[..at].rfind(|c: char| !c.is_ascii_alphanumeric() && c != '+').map_or(0, |before| before + 1);
        // The character before may be longer than one byte.
        let start = (start..=at).find(|index| rest.is_char_boundary(*index)).unwrap_or(at);
        out.push_str(&rest[..start]);
        out.push_str("(the index)");
        let tail = &rest[at + 3..];
        let end = tail.find(|c: char| c.is_whitespace() || "`'\")>]".contains(c)).unwrap_or(tail.len());
        rest = &tail[end..];
    }
    out.push_str(rest);
    out
}

/// Replaces whatever looks like an absolute path: the server's folders are nobody's business.
pub(crate) fn without_paths(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('/') {
        let (before, path) = rest.split_at(at);
        out.push_str(before);
        let begins = before.chars().next_back().is_none_or(|c| c.is_whitespace() || "`'\"(<[=:".contains(c));
        let end = path.find(|c: char| c.is_whitespace() || "`'\")>],:;".contains(c)).unwrap_or(path.len());
        if begins && end > 1 {
            out.push_str("(a file)");
        } else {
            out.push_str(&path[..end.max(1)]);
        }
        rest = &path[end.max(1)..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// What uv and pip of [`READ_FOR`] wrote.
    const SAID: &[(Reason, &str)] = &[
        (
            Reason::NoWheel,
            "error: No solution found when resolving dependencies\n  cause: Because sdist-only==1.0 has no usable wheels and only sdist-only==1.0 is available, we can conclude that all versions of sdist-only cannot be used.",
        ),
        (
            Reason::NoWheel,
            "  cause: Because old-linux==1.0 has no wheels with a matching Python implementation tag (e.g., `cp313`) and only old-linux==1.0 is available",
        ),
        (
            Reason::NotFound,
            "error: No solution found when resolving dependencies\n  cause: Because not-there-at-all was not found in the package registry and you require not-there-at-all",
        ),
        (
            Reason::NotFound,
            "error: No solution found when resolving dependencies\n  cause: Because there are no versions of young-one and you require young-one",
        ),
        // Once the index was said to be down because of the number.
        (
            Reason::NotFound,
            "error: No solution found when resolving dependencies\n  cause: Because there is no version of good-one==1.401 and you require good-one==1.401",
        ),
        (
            Reason::NotFound,
            "ERROR: Could not find a version that satisfies the requirement good-one==1.403 (from versions: 1.0, 2.0)\nERROR: No matching distribution found for good-one==1.403 ",
        ),
        (Reason::HashMismatch, "error: Failed to download `wrong-hash==1.0`\n  cause: Hash mismatch for `wrong-hash==1.0`"),
        (
            Reason::HashMismatch,
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have updated the package versions",
        ),
        (
            Reason::IndexUnreachable,
            "error: Failed to download `half-one==1.0`\n  cause: Failed to write to the distribution cache\n  cause: error decoding response body",
        ),
        (Reason::IndexUnreachable, "error: incomplete-download\n\nnote: This is an issue with network connectivity, not pip."),
        (
            Reason::IndexUnreachable,
            "hint: An index URL (http://x/simple/) could not be queried due to a lack of valid authentication credentials (401 Unauthorized)",
        ),
        (
            Reason::IndexUnreachable,
            "hint: An index (http://x/simple/) returned a 403 Forbidden error. Check that the index URL is correct",
        ),
        (
            Reason::IndexUnreachable,
            "error: Failed to fetch: http://x/simple/good-one/\n  cause: HTTP status server error (503 Service Unavailable)",
        ),
        (
            Reason::NoSolution,
            "error: No solution found when resolving dependencies\n  cause: Because all versions of wants-two depend on good-one==2.0 and all versions of wants-one depend on good-one==1.0",
        ),
        (
            Reason::NoSolution,
            "ERROR: Cannot install wants-one and wants-two because these package versions have conflicting dependencies.\nERROR: ResolutionImpossible: for help visit the documentation",
        ),
        (
            Reason::DirectReference,
            "  cause: Package `x` was included as a URL dependency. URL dependencies must be expressed as direct requirements",
        ),
        (Reason::DirectReference, "ERROR: direct reference: direct needs x from an address"),
        (Reason::Failed, "thread 'main' panicked"),
    ];

    #[test]
    fn a_failure_of_either_tool_is_known_by_its_words() {
        for (reason, said) in SAID {
            assert_eq!(reason_of(said), *reason, "{said}");
        }
        // pip's own word is the same for each: that there is no such package.
        let log = "2026-11-26T04:45:58 Fetching project page and analyzing links: http://x/simple/a/\n Could not fetch URL http://x/simple/a/: ";
        for why in [
            "connection error: [Errno 111] Connection refused - skipping",
            "401 Client Error: Unauthorized for url: http://x/simple/a/ - skipping",
            "403 Client Error: Forbidden for url: http://x/simple/a/ - skipping",
            "HTTPConnectionPool(host='x', port=1): Max retries exceeded with url: /a/ (Caused by ResponseError('too many 503 error responses')) - skipping",
        ] {
            let failed = failed_fetches(&format!("{log}{why}\n"));
            assert_eq!(
                reason_of(&format!("{failed}ERROR: No matching distribution found for a")),
                Reason::IndexUnreachable,
                "{why}"
            );
        }
        assert_eq!(failed_fetches(&format!("{log}404 Client Error: Not Found for url: http://x/simple/a/ - skipping")), "");
    }

    /// Where this fails after an update: run the end-to-end tests, which hold each reason, and set the version.
    #[test]
    fn the_tools_are_those_whose_words_were_read() {
        let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../build");
        let uv = std::process::Command::new(build.join("tools/bin/uv")).arg("--version").output().expect("uv runs");
        let uv = String::from_utf8(uv.stdout).expect("text");
        let pip = std::fs::File::open(build.join("tree/pip.zip")).expect("the tree has pip");
        let pip = zip::ZipArchive::new(pip).expect("an archive");
        let is_read_for = |name: &str| name.starts_with(&format!("{}.dist-info/", READ_FOR[1]));
        assert!(uv.starts_with(&format!("{} ", READ_FOR[0])) && pip.file_names().any(is_read_for), "{uv}");
    }

    #[test]
    fn addresses_and_paths_stay_on_the_server() {
        let text = "error: Failed to fetch: `https://user:se%40cret@index.example/simple/x/` for user";
        assert_eq!(without_addresses(text), "error: Failed to fetch: `(the index)` for user");
        assert_eq!(without_addresses("é://x y"), "é(the index) y");
        let text =
            "[Errno 28] No space left on device: '/var/cache/x/work/1-0/a' and/or (from -r /tmp/w.txt (line 1)), 1/2 é/x /";
        assert_eq!(
            without_paths(text),
            "[Errno 28] No space left on device: '(a file)' and/or (from -r (a file) (line 1)), 1/2 é/x /"
        );
    }
}
