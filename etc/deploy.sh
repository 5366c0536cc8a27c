#!/usr/bin/env bash
# Puts layer and function into an AWS account. The makefile calls it: make layer.deploy, make apigw, make logs ...
# Everything is read from etc/environment.sh (or ENVIRONMENT); AWS and SAM name the two programs.
set -euo pipefail
cd "$(dirname "$0")/.."

AWS=${AWS:-aws}
SAM=${SAM:-build/aws/bin/sam}
export SAM_CLI_TELEMETRY=0
ENVIRONMENT=${ENVIRONMENT:-etc/environment.sh}

refuse() {
  echo "etc/deploy.sh: $*" >&2
  exit 2
}

[ -f "$ENVIRONMENT" ] || refuse "$ENVIRONMENT is not there: cp etc/environment.sh.example etc/environment.sh, and change what is in <angle brackets>"
# shellcheck disable=SC1090
. "$ENVIRONMENT" || refuse "$ENVIRONMENT can't be read: values with spaces or < > need quotes"

# Refuses all that is missing or still as in the example, by name, before anything runs.
need() {
  local name bad=()
  for name in "$@"; do
    case ${!name:-} in
      "") bad+=("$name is not set") ;;
      *"<"* | *">"*) bad+=("$name is still ${!name}") ;;
    esac
  done
  [ ${#bad[@]} = 0 ] || refuse "in $ENVIRONMENT: $(printf '%s; ' "${bad[@]}" | sed 's/; $//')"
}

between() { # name least most
  local value=${!1:-}
  [ -z "$value" ] && return
  case $value in *[!0-9]*) refuse "in $ENVIRONMENT: $1 must be a whole number, not $value" ;; esac
  { [ "$value" -ge "$2" ] && [ "$value" -le "$3" ]; } || refuse "in $ENVIRONMENT: $1 must be from $2 to $3, not $value"
}

one_of() { # name words...
  local name=$1 value=${!1:-} word
  shift
  [ -z "$value" ] && return
  for word in "$@"; do [ "$value" = "$word" ] && return; done
  refuse "in $ENVIRONMENT: $name must be one of $*, not $value"
}

account() { need PROFILE BUCKET REGION; }

# Name=value of each: `pairs Parameter VARIABLE ...`. An empty one is given as empty: a stack keeps what it is not given.
pairs() {
  while [ $# -gt 0 ]; do
    printf '%s=%s\n' "$1" "${!2:-\"\"}"
    shift 2
  done
}

package() { # template
  "$SAM" package --profile "$PROFILE" --region "$REGION" --s3-bucket "$BUCKET" --s3-prefix code-interpreter \
    --template-file "sam/$1.yaml" --output-template-file "build/$1.packaged.yaml"
}

deploy() { # template stack parameters...
  local template=$1 stack=$2
  shift 2
  "$SAM" deploy --profile "$PROFILE" --region "$REGION" --s3-bucket "$BUCKET" --s3-prefix code-interpreter \
    --template-file "build/$template.packaged.yaml" --stack-name "$stack" --capabilities CAPABILITY_IAM CAPABILITY_AUTO_EXPAND \
    --no-fail-on-empty-changeset ${*:+--parameter-overrides "$@"}
}

output() { # stack key
  "$AWS" cloudformation describe-stacks --profile "$PROFILE" --region "$REGION" --stack-name "$1" \
    --query "Stacks[0].Outputs[?OutputKey=='$2'].OutputValue" --output text
}

one_of ARCH arm64 x86_64
ARCH=${ARCH:-arm64}
case ${1:-} in
  check)
    account
    ;;
  layer.package)
    account
    [ -f "build/layer-$ARCH.zip" ] || refuse "build/layer-$ARCH.zip is not there: make layer.build"
    cp -f "build/layer-$ARCH.zip" build/layer.zip
    package layer
    ;;
  layer.deploy)
    account
    need LAYER_STACK
    deploy layer "$LAYER_STACK" "Architecture=$ARCH"
    echo "the layer is $(output "$LAYER_STACK" LayerArn)"
    ;;
  apigw.package)
    account
    [ -f build/function/bootstrap ] || refuse "build/function/bootstrap is not there: make bootstrap"
    # The processor an ELF file is for, as its header says it.
    case $(od -An -tx1 -j18 -N1 build/function/bootstrap | tr -d ' ') in
      b7) built=arm64 ;;
      *) built=x86_64 ;;
    esac
    [ "$built" = "$ARCH" ] || refuse "build/function/bootstrap is for $built, and ARCH is $ARCH: make apigw ARCH=$ARCH"
    package template
    ;;
  apigw.deploy)
    account
    need APIGW_STACK P_API_STAGE P_FN_MEMORY P_FN_TIMEOUT P_CODE_MEMORY P_PRELOAD P_POLICY P_RESPONSE_STREAMING P_RESPONSE_LOCK \
      P_TENANT_ISOLATION P_AUTHORIZATION P_CONCURRENCY P_RATE_LIMIT P_DAILY_QUOTA P_API_LOGS_ROLE P_LOG_RETENTION_DAYS
    [ -z "${P_VPC_ID:-}" ] || need P_SUBNET_IDS
    [ "$P_AUTHORIZATION" != Cognito ] || need P_USER_POOL_ARN
    between P_FN_MEMORY 128 10240
    between P_FN_TIMEOUT 15 900
    between P_CONCURRENCY 0 10000
    between P_CODE_MEMORY 64 10240
    between P_RATE_LIMIT 1 10000
    between P_DAILY_QUOTA 1 100000000
    one_of P_PRELOAD core data plot all
    one_of P_POLICY open restricted
    one_of P_RESPONSE_STREAMING true false
    one_of P_RESPONSE_LOCK require prefer off
    [ "$P_RESPONSE_STREAMING/$P_RESPONSE_LOCK" != false/require ] ||
      refuse "in $ENVIRONMENT: P_RESPONSE_LOCK=require needs P_RESPONSE_STREAMING=true: a buffered answer can't be locked"
    one_of P_TENANT_ISOLATION PER_TENANT NONE
    one_of P_AUTHORIZATION ApiKey IAM Cognito
    one_of P_API_LOGS_ROLE create existing
    if [ -z "${O_LAYER_ARN:-}" ]; then
      need LAYER_STACK
      O_LAYER_ARN=$(output "$LAYER_STACK" LayerArn) || refuse "the stack $LAYER_STACK does not say where the layer is: make layer, or set O_LAYER_ARN"
    fi
    need O_LAYER_ARN
    parameters=()
    while IFS= read -r pair; do parameters+=("$pair"); done < <(pairs LayerArn O_LAYER_ARN Architecture ARCH \
      StageName P_API_STAGE Memory P_FN_MEMORY Timeout P_FN_TIMEOUT CodeMemory P_CODE_MEMORY Preload P_PRELOAD Policy P_POLICY \
      ResponseStreaming P_RESPONSE_STREAMING ResponseLock P_RESPONSE_LOCK TenantIsolation P_TENANT_ISOLATION Authorization P_AUTHORIZATION \
      UserPoolArn P_USER_POOL_ARN ReservedConcurrency P_CONCURRENCY RateLimit P_RATE_LIMIT DailyQuota P_DAILY_QUOTA \
      ArtefactBucket P_ARTEFACT_BUCKET VpcId P_VPC_ID SubnetIds P_SUBNET_IDS AlarmTopicArn P_ALARM_TOPIC_ARN \
      ApiLogsRole P_API_LOGS_ROLE LogRetentionDays P_LOG_RETENTION_DAYS)
    deploy template "$APIGW_STACK" "${parameters[@]}"
    url=$(output "$APIGW_STACK" Url)
    echo "it is at $url/lambda/mcp/"
    key=$(output "$APIGW_STACK" ApiKeyId)
    [ -z "$key" ] || [ "$key" = None ] ||
      echo "its key:   $AWS apigateway get-api-key --profile $PROFILE --region $REGION --include-value --query value --output text --api-key $key"
    echo "try it:    API_KEY=... ./test_deployment.sh $url"
    ;;
  apigw.delete)
    account
    need APIGW_STACK
    "$SAM" delete --profile "$PROFILE" --region "$REGION" --stack-name "$APIGW_STACK" --no-prompts
    ;;
  logs)
    account
    need APIGW_STACK
    "$AWS" logs tail "$(output "$APIGW_STACK" LogGroup)" --profile "$PROFILE" --region "$REGION" --follow --format short
    ;;
  *)
    refuse "usage: etc/deploy.sh check|layer.package|layer.deploy|apigw.package|apigw.deploy|apigw.delete|logs"
    ;;
esac
