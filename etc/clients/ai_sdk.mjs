// The Vercel AI SDK: what a tool's output becomes on its way to the model.
import * as checks from "./checks.mjs";
import { load, version } from "./package_of.mjs";
import { seen } from "./seen.mjs";

const { createMCPClient, experimental_createMCPClient } = await load("@ai-sdk/mcp");
const create = createMCPClient ?? experimental_createMCPClient;

async function open() {
  let transport = { type: "http", url: checks.url.href };
  if (checks.door === "stdio") {
    const stdio = await load("@ai-sdk/mcp/mcp-stdio");
    const Transport = stdio.StdioMCPTransport ?? stdio.Experimental_StdioMCPTransport;
    const [command, ...args] = checks.command;
    transport = new Transport({ command, args, env: checks.serverEnv, stderr: "ignore" });
  }
  const client = await create({ transport });
  const tools = await client.tools();
  return {
    tools: async () => Object.keys(tools),
    call: async (given, { name = checks.TOOL, signal } = {}) => {
      const output = await tools[name].execute(given, { toolCallId: "1", messages: [], abortSignal: signal });
      const told = tools[name].toModelOutput?.({ output, toolCallId: "1", input: given }) ?? output;
      return seen(await told, output.isError || undefined);
    },
    close: () => client.close(),
  };
}

const none = "asks for no progress";
const without = { progress: none, heartbeat: none, unknown: "calls only tools that were listed" };
await checks.run({ client: "AI SDK", version: version("@ai-sdk/mcp"), open, without });
