// The TypeScript SDK 1.x; the argument is the name under which package.json has the version.
import * as checks from "./checks.mjs";
import { load, version } from "./package_of.mjs";

const SDK = process.argv[2];
const { Client } = await load(`${SDK}/client/index.js`);
const { StreamableHTTPClientTransport } = await load(`${SDK}/client/streamableHttp.js`);
const { StdioClientTransport } = await load(`${SDK}/client/stdio.js`);

async function open() {
  const [command, ...args] = checks.command;
  const transport =
    checks.door === "http"
      ? new StreamableHTTPClientTransport(checks.url)
      : new StdioClientTransport({ command, args, env: checks.serverEnv, stderr: "ignore" });
  const client = new Client({ name: "check", version: "1" });
  await client.connect(transport);
  return {
    tools: async () => (await client.listTools()).tools.map((tool) => tool.name),
    call: async (given, { name = checks.TOOL, progress, signal } = {}) => {
      const onprogress = progress && ((note) => progress.push(note));
      return checks.answer(await client.callTool({ name, arguments: given }, undefined, { onprogress, signal }));
    },
    close: () => client.close(),
  };
}

await checks.run({ client: "TypeScript SDK", version: version(SDK), open });
