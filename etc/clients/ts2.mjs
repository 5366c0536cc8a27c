// The TypeScript client 2.x; the argument is the era: legacy (its default), auto, or a version to pin.
import * as checks from "./checks.mjs";
import { load, version } from "./package_of.mjs";

const SDK = "@modelcontextprotocol/client";
const { Client, StreamableHTTPClientTransport } = await load(SDK);
const { StdioClientTransport } = await load(`${SDK}/stdio`);
const era = process.argv[2];
const options = era === "default" ? {} : { versionNegotiation: { mode: era === "auto" ? era : { pin: era } } };

async function open() {
  const [command, ...args] = checks.command;
  const transport =
    checks.door === "http"
      ? new StreamableHTTPClientTransport(checks.url)
      : new StdioClientTransport({ command, args, env: checks.serverEnv, stderr: "ignore" });
  const client = new Client({ name: "check", version: "1" }, options);
  await client.connect(transport);
  return {
    tools: async () => (await client.listTools()).tools.map((tool) => tool.name),
    call: async (given, { name = checks.TOOL, progress, signal } = {}) => {
      const onprogress = progress && ((note) => progress.push(note));
      return checks.answer(await client.callTool({ name, arguments: given }, { onprogress, signal }));
    },
    close: () => client.close(),
  };
}

await checks.run({ client: "TypeScript client", version: version(SDK), open });
