"""The tool list under Python's jsonschema in three drafts, and under the rules of loaders that know plain schemas only."""

import importlib.metadata
import json
import os
import urllib.request

import jsonschema

DRAFTS = {
    "draft-07": jsonschema.Draft7Validator,
    "2019-09": jsonschema.Draft201909Validator,
    "2020-12": jsonschema.Draft202012Validator,
}
# What AutoGen's and DSPy's loaders look a property's type up in: anything else, a list of types too, makes them fail.
TYPES = {"string", "integer", "number", "boolean", "array", "object", "null"}
# What some validator or loader does not follow.
FOREIGN = {"$ref", "$defs", "definitions", "oneOf", "anyOf", "allOf", "const"}
FORMATS = {"date-time", "date", "time", "email", "uri", "uuid"}


def ask(method: str, params: dict) -> dict:
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
    headers = {"content-type": "application/json", "accept": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(os.environ["SERVER_URL"], body, headers), timeout=60) as got:
        return json.load(got)["result"]


def say(check: str, faults: list[str]) -> None:
    line = {"client": "jsonschema", "version": importlib.metadata.version("jsonschema"), "door": os.environ["DOOR"]}
    print(json.dumps(line | {"check": check, "ok": not faults, "note": "; ".join(faults)[:300]}), flush=True)


def schemas(schema: dict, path: str):
    """A schema and all those in it, each with its place."""
    yield path, schema
    for keyword in ("properties", "patternProperties", "$defs", "definitions"):
        for name, inner in schema.get(keyword, {}).items():
            yield from schemas(inner, f"{path}.{name}")
    for keyword in ("items", "additionalProperties"):
        if isinstance(schema.get(keyword), dict):
            yield from schemas(schema[keyword], f"{path}.{keyword}")
    for keyword in ("oneOf", "anyOf", "allOf", "prefixItems"):
        for number, inner in enumerate(schema.get(keyword, [])):
            yield from schemas(inner, f"{path}.{keyword}[{number}]")


tools = ask("tools/list", {})["tools"]
every = [found for tool in tools for key in ("inputSchema", "outputSchema") if key in tool for found in schemas(tool[key], f"{tool['name']}.{key}")]
code = next(tool for tool in tools if tool["name"] == "execute_python")["inputSchema"]

for draft, validator in DRAFTS.items():
    faults = []
    for tool in tools:
        for key in ("inputSchema", "outputSchema"):
            if key in tool:
                try:
                    validator.check_schema(tool[key])
                except jsonschema.SchemaError as wrong:
                    faults.append(f"{tool['name']}.{key}: {wrong.message}")
        if not faults and "outputSchema" in tool and tool["name"] in ("get_environment_info", "list_preinstalled_packages"):
            answer = ask("tools/call", {"name": tool["name"], "arguments": {}})["structuredContent"]
            faults += [f"{tool['name']} answers what it does not promise: {wrong.message}" for wrong in validator(tool["outputSchema"]).iter_errors(answer)]
    for given, right in (({"code": "1"}, True), ({"code": "1", "timeout": 5, "requirements": ["six"], "policy": "restricted"}, True), ({}, False)):
        if not faults and validator(code).is_valid(given) != right:
            faults.append(f"{json.dumps(given)} should be {'valid' if right else 'invalid'}")
    say(f"tool list, {draft}", faults)

faults = [f"{path}: type {json.dumps(inner['type'])}" for path, inner in every if "type" in inner and not (isinstance(inner["type"], str) and inner["type"] in TYPES)]
faults += [f"{path}: no type" for path, inner in every if "type" not in inner and path.startswith("execute_python.inputSchema.")]
say("plain types", faults)
say("plain keywords", [f"{path}: {keyword}" for path, inner in every for keyword in sorted(FOREIGN & set(inner))])
say("formats that all know", [f"{path}: {inner['format']}" for path, inner in every if "format" in inner and inner["format"] not in FORMATS])
properties = code["properties"]
missing = [f"timeout has no {key}" for key in ("maximum", "default") if key not in properties["timeout"]]
missing += [] if "enum" in properties["policy"] else ["policy is no enum"]
missing += [f"{name} has no description" for name, property in properties.items() if not property.get("description")]
say("bounds in the schema", missing)
