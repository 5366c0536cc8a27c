#!/usr/bin/env python3
"""Runs a file in a deployment: check_deployment.py BASE_URL FILE [REQUIREMENT ...]. API_KEY is sent as x-api-key when set."""

import json
import os
import sys
import urllib.request

base, path, *requirements = sys.argv[1:]
with open(path) as file:
    arguments = {"code": file.read(), "timeout": 110, "requirements": requirements}
call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "execute_python", "arguments": arguments}}
headers = {"content-type": "application/json", "accept": "application/json"}
if "API_KEY" in os.environ:
    headers["x-api-key"] = os.environ["API_KEY"]
request = urllib.request.Request(base.rstrip("/") + "/lambda/mcp/", json.dumps(call).encode(), headers)
with urllib.request.urlopen(request, timeout=150) as response:
    result = json.loads(json.load(response)["result"]["content"][0]["text"])
print(result["stdout"], end="")
if not result["success"]:
    sys.exit(f"{result['error']['type']}: {result['error']['message']}\n{result['error'].get('traceback')}")
