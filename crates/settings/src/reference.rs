//! The reference of all settings, for people.

const ENV_HEAD: &str =
    "# Settings of code-interpreter. `--env-file FILE` reads such a file; `serve` also reads .env of the folder it is started
# in, without what decides over security there (`code-interpreter serve --help` says which). A value is what is written,
# also with a $ in it. In the environment each has CODE_INTERPRETER_ in front, which `serve` and `doctor` don't insist on.

";

/// The reference of all settings as an `.env` file (`env`) or a table (`markdown`).
pub fn reference(format: &str) -> Option<String> {
    let command = crate::registry();
    let rows = command.get_arguments().filter_map(|argument| {
        let default = argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect::<Vec<_>>().join(",");
        let help = argument.get_help()?.to_string();
        Some((argument.get_env()?.to_string_lossy().into_owned(), argument.get_long()?.to_owned(), default, help))
    });
    match format {
        "env" => Some(
            ENV_HEAD.to_owned()
                + &rows.map(|(env, _, default, help)| format!("# {help}\n#{env}={default}\n")).collect::<Vec<_>>().join("\n"),
        ),
        "markdown" => {
            let rows = rows.map(|(env, flag, default, help)| format!("| `{env}` | `--{flag}` | {} | {help} |\n", code(&default)));
            Some(format!("| variable | flag | default | meaning |\n| --- | --- | --- | --- |\n{}", rows.collect::<String>()))
        }
        _ => None,
    }
}

fn code(text: &str) -> String {
    if text.is_empty() { "–".to_owned() } else { format!("`{text}`") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository_file(name: &str) -> String {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../");
        std::fs::read_to_string(format!("{path}{name}")).expect("the file is in the repository")
    }

    #[test]
    fn env_example_is_current() {
        assert_eq!(repository_file(".env.example"), reference("env").expect("a format"), "run `make settings`");
    }

    #[test]
    fn the_readme_table_is_current() {
        assert!(repository_file("README.md").contains(&reference("markdown").expect("a format")), "run `make settings`");
    }
}
