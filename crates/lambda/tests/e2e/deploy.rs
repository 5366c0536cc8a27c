//! `make layer` and `make apigw` up to AWS's door: what is refused, and what the two programs of AWS are asked for.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

/// Stands in for `aws` and `sam`: writes its command line down, and says where the layer is.
const RECORDER: &str = "#!/bin/sh\necho \"$@\" >> \"$RECORD\"\ncase \"$*\" in *LayerArn*) echo arn:aws:lambda:eu-central-1:123456789012:layer:l:7;; *) echo None;; esac\n";

struct Deployment {
    directory: TempDir,
}

impl Deployment {
    /// With the example's settings, changed by these lines.
    fn with(lines: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let example = std::fs::read_to_string(homes::repository().join("etc/environment.sh.example")).unwrap();
        std::fs::write(directory.path().join("environment.sh"), format!("{example}\n{lines}\n")).unwrap();
        let recorder = directory.path().join("recorder");
        std::fs::write(&recorder, RECORDER).unwrap();
        std::fs::set_permissions(&recorder, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { directory }
    }

    fn filled(lines: &str) -> Self {
        Self::with(&format!("PROFILE=me\nBUCKET=uploads\nREGION=eu-central-1\n{lines}"))
    }

    fn place(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Exit code, what was said, and what the programs were asked.
    fn run(&self, step: &str) -> (i32, String, String) {
        let output = Command::new(homes::repository().join("etc/deploy.sh"))
            .arg(step)
            .env("ENVIRONMENT", self.place("environment.sh"))
            .env("AWS", self.place("recorder"))
            .env("SAM", self.place("recorder"))
            .env("RECORD", self.place("record"))
            .output()
            .unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap(), said, std::fs::read_to_string(self.place("record")).unwrap_or_default())
    }
}

#[test]
fn what_is_still_as_in_the_example_is_refused_by_name_before_anything_runs() {
    for step in ["check", "layer.package", "layer.deploy", "apigw.package", "apigw.deploy", "apigw.delete", "logs"] {
        let (code, said, asked) = Deployment::with("").run(step);
        assert_eq!(code, 2, "{step}: {said}");
        for name in ["PROFILE", "BUCKET", "REGION"] {
            assert!(said.contains(&format!("{name} is still <your-")), "{step}: {said}");
        }
        assert_eq!(asked, "", "{step}");
    }
}

#[test]
fn missing_and_impossible_values_are_refused_by_name() {
    for (line, expected) in [
        ("BUCKET=", "BUCKET is not set"),
        ("P_FN_MEMORY=64", "P_FN_MEMORY must be from 128 to 10240, not 64"),
        ("P_FN_MEMORY=2GB", "P_FN_MEMORY must be a whole number, not 2GB"),
        ("P_FN_TIMEOUT=901", "P_FN_TIMEOUT must be from 15 to 900, not 901"),
        ("ARCH=arm", "ARCH must be one of arm64 x86_64, not arm"),
        ("P_AUTHORIZATION=none", "P_AUTHORIZATION must be one of ApiKey IAM Cognito, not none"),
        ("P_API_STAGE=", "P_API_STAGE is not set"),
        ("P_RESPONSE_LOCK=on", "P_RESPONSE_LOCK must be one of require prefer off, not on"),
        ("P_RESPONSE_STREAMING=false\nP_RESPONSE_LOCK=require", "P_RESPONSE_LOCK=require needs P_RESPONSE_STREAMING=true"),
        ("P_VPC_ID=vpc-1", "P_SUBNET_IDS is not set"),
        ("P_AUTHORIZATION=Cognito", "P_USER_POOL_ARN is not set"),
    ] {
        let (code, said, asked) = Deployment::filled(line).run("apigw.deploy");
        assert!(code == 2 && said.contains(expected), "{line}: {said}");
        assert_eq!(asked, "", "{line}");
    }
    let nowhere =
        Command::new(homes::repository().join("etc/deploy.sh")).arg("check").env("ENVIRONMENT", "/nonexistent").output();
    assert!(String::from_utf8_lossy(&nowhere.unwrap().stderr).contains("cp etc/environment.sh.example etc/environment.sh"));
}

#[test]
fn the_layer_is_found_in_its_stack_unless_another_is_named() {
    let (code, said, asked) = Deployment::filled("P_FN_MEMORY=4096\nP_API_STAGE=live").run("apigw.deploy");
    assert_eq!(code, 0, "{said}");
    assert!(asked.contains("describe-stacks") && asked.contains("--stack-name code-interpreter-layer"), "{asked}");
    let deploy = asked.lines().find(|line| line.starts_with("deploy ")).unwrap();
    for part in [
        "--stack-name code-interpreter ",
        "--capabilities CAPABILITY_IAM",
        "LayerArn=arn:aws:lambda:eu-central-1:123456789012:layer:l:7",
        "Architecture=arm64",
        "StageName=live",
        "Memory=4096",
        "TenantIsolation=PER_TENANT",
        "ResponseLock=prefer",
    ] {
        assert!(deploy.contains(part), "{part}: {deploy}");
    }
    for empty in ["VpcId", "ArtefactBucket"] {
        assert!(deploy.contains(&format!("{empty}=\"\"")), "a stack keeps what it is not given: {deploy}");
    }
    let (_, _, asked) =
        Deployment::filled("O_LAYER_ARN=arn:aws:lambda:eu-central-1:123456789012:layer:mine:1").run("apigw.deploy");
    assert!(asked.contains("LayerArn=arn:aws:lambda:eu-central-1:123456789012:layer:mine:1"), "{asked}");
}

/// Each parameter the script gives is one that the template has, and what it leaves alone has a default.
#[test]
fn script_and_template_agree_on_parameters() {
    let template = std::fs::read_to_string(homes::repository().join("sam/template.yaml")).unwrap();
    let parameters = template.split("\nConditions:").next().unwrap().split("\nParameters:").nth(1).unwrap();
    let is_name = |line: &&str| line.starts_with("  ") && !line.starts_with("   ");
    let names = parameters.lines().filter(is_name).map(|line| line.trim().trim_end_matches(':')).collect::<Vec<_>>();
    let all = "P_USER_POOL_ARN=a\nP_ARTEFACT_BUCKET=b\nP_VPC_ID=c\nP_SUBNET_IDS=d\nP_ALARM_TOPIC_ARN=e";
    let (_, _, asked) = Deployment::filled(all).run("apigw.deploy");
    let given = asked.lines().find(|line| line.starts_with("deploy ")).unwrap().split("--parameter-overrides ").nth(1).unwrap();
    let given = given.split(' ').map(|pair| pair.split('=').next().unwrap()).collect::<Vec<_>>();
    assert_eq!(given.len(), 22, "{given:?}");
    for name in &given {
        assert!(names.contains(name), "{name} is no parameter of the template");
    }
    for name in names.iter().filter(|name| !given.contains(name)) {
        let own = parameters.split(&format!("\n  {name}:")).nth(1).unwrap().split("\n  ").take(7).collect::<String>();
        assert!(own.contains("Default:"), "{name} has no default");
    }
}
