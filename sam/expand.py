"""Prints the template as CloudFormation sees it: openapi.yaml merged in, SAM's resources written out. Linters read neither.

usage: expand.py TEMPLATE"""

import json
import os
import sys

from samcli.yamlhelper import yaml_parse
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator


def merged(value, folder):
    """Does what the AWS::Include transform does."""
    if isinstance(value, dict):
        include = value.get("Fn::Transform")
        if include and include["Name"] == "AWS::Include":
            with open(os.path.join(folder, include["Parameters"]["Location"])) as file:
                return yaml_parse(file.read())
        return {key: merged(item, folder) for key, item in value.items()}
    return [merged(item, folder) for item in value] if isinstance(value, list) else value


path = sys.argv[1]
with open(path) as file:
    template = merged(yaml_parse(file.read()), os.path.dirname(path))
# SAM takes addresses in S3 only, which `sam package` puts there.
for resource in template["Resources"].values():
    for name in ("CodeUri", "ContentUri"):
        if name in resource.get("Properties", {}):
            resource["Properties"][name] = "s3://bucket/" + os.path.basename(resource["Properties"][name])
os.environ.setdefault("AWS_DEFAULT_REGION", "eu-central-1")
expanded = Translator({}, Parser()).translate(template, {})
print(json.dumps(expanded, indent=1, sort_keys=True))
