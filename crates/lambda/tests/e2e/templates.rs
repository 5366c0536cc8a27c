//! The SAM templates: linted as they are and as `CloudFormation` sees them, and held to a golden file.

use std::process::{Command, Output};

use serde_json::{Value, json};

fn tool(name: &str, arguments: &[&str]) -> Output {
    let program = homes::repository().join("build/aws/bin").join(name);
    let mut command = Command::new(&program);
    command.args(arguments).current_dir(homes::repository());
    command.env("AWS_DEFAULT_REGION", "eu-central-1").env("SAM_CLI_TELEMETRY", "0");
    command.output().unwrap_or_else(|error| panic!("{}: {error}: `make aws`", program.display()))
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn expanded(template: &str) -> Value {
    let output = tool("python", &["sam/expand.py", template]);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(&output)))
}

#[test]
fn cfn_lint_and_sam_validate_have_nothing_to_say() {
    let linted = tool("cfn-lint", &["sam/template.yaml", "sam/layer.yaml"]);
    assert!(linted.status.success(), "{}", said(&linted));
    for template in ["sam/template.yaml", "sam/layer.yaml"] {
        let validated = tool("sam", &["validate", "--lint", "--template", template]);
        assert!(validated.status.success(), "{}", said(&validated));
    }
}

/// SAM makes resources of its own, and they have names too: a parameter `ApiStage` was one of them.
#[test]
fn what_cloudformation_sees_is_linted_too() {
    let directory = tempfile::tempdir().unwrap();
    for template in ["template", "layer"] {
        let path = directory.path().join(format!("{template}.json"));
        std::fs::write(&path, expanded(&format!("sam/{template}.yaml")).to_string()).unwrap();
        // SAM writes the value of a parameter out where it is used; having no subnets is the default.
        let linted = tool("cfn-lint", &["--ignore-checks", "W2001", "W1030", "--", path.to_str().unwrap()]);
        assert!(linted.status.success(), "{template}: {}", said(&linted));
    }
}

/// Linters don't read the API's definition.
#[test]
fn the_api_streams_and_takes_the_tenant_from_who_was_verified() {
    let template = expanded("sam/template.yaml");
    let method = &template["Resources"]["Api"]["Properties"]["Body"]["paths"]["/{proxy+}"]["x-amazon-apigateway-any-method"];
    let integration = &method["x-amazon-apigateway-integration"];
    let either = |value: &Value| (value["Fn::If"][1].clone(), value["Fn::If"][2].clone());
    let (streaming, buffered) = either(&integration["uri"]);
    assert!(
        streaming["Fn::Sub"]
            .as_str()
            .unwrap()
            .ends_with("path/2021-11-15/functions/${Function.Arn}/response-streaming-invocations")
    );
    assert!(buffered["Fn::Sub"].as_str().unwrap().ends_with("path/2015-03-31/functions/${Function.Arn}/invocations"));
    assert_eq!(either(&integration["responseTransferMode"]), (json!("STREAM"), json!("BUFFERED")));
    let tenant = &either(&integration["requestParameters"]).0["integration.request.header.X-Amz-Tenant-Id"];
    let (iam, other) = either(tenant);
    let (cognito, key) = either(&other);
    for source in [&iam, &cognito, &key] {
        let source = source.as_str().unwrap();
        assert!(source.starts_with("context.identity.") || source.starts_with("context.authorizer."), "{source}");
    }
    assert!(!method["security"].is_null(), "nobody may call without saying who");
}

#[test]
fn the_functions_role_may_do_next_to_nothing() {
    let template = expanded("sam/template.yaml");
    let policies = template["Resources"]["FunctionRole"]["Properties"]["Policies"].as_array().unwrap().clone();
    let always = policies.iter().filter(|policy| policy.get("Fn::If").is_none()).collect::<Vec<_>>();
    assert_eq!(always.len(), 1, "{always:?}");
    let statements = &always[0]["PolicyDocument"]["Statement"];
    assert_eq!(statements[0]["Action"], json!(["logs:CreateLogStream", "logs:PutLogEvents"]));
    assert_eq!(statements[0]["Resource"]["Fn::Sub"], "${FunctionLogs.Arn}");
    let bucket = policies.iter().find(|policy| policy["Fn::If"][0] == "HasBucket").unwrap();
    let statement = &bucket["Fn::If"][1]["PolicyDocument"]["Statement"][0];
    assert_eq!(statement["Resource"]["Fn::Sub"], "arn:${AWS::Partition}:s3:::${ArtefactBucket}/code-interpreter/*");
    assert!(template["Resources"]["FunctionRole"]["Properties"]["ManagedPolicyArns"].is_null());
}

/// The whole of it: its difference is the review. `INSTA_UPDATE=always cargo nextest run -p lambda golden` renews it.
#[test]
fn golden_template() {
    let mut template = expanded("sam/template.yaml");
    let name = deployment(&template);
    // It has another name each time, so that what is deployed follows parameters too: SAM's digest does not know them.
    assert_ne!(name, deployment(&expanded("sam/template.yaml")));
    template["Resources"][&name]["Properties"]["Description"] = json!("RestApi deployment id: …");
    insta::assert_snapshot!(serde_json::to_string_pretty(&template).unwrap().replace(&name, "ApiDeployment"));
}

fn deployment(template: &Value) -> String {
    let mut names = template["Resources"].as_object().unwrap().keys();
    names.find(|name| name.starts_with("ApiDeployment")).unwrap().clone()
}
