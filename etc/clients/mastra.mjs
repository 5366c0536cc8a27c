// Mastra: what a tool gives to its agents.
import * as checks from "./checks.mjs";
import { load, version } from "./package_of.mjs";
import { seen } from "./seen.mjs";

const { MCPClient } = await load("@mastra/mcp");
let number = 0;

async function open() {
  const [command, ...args] = checks.command;
  const python = checks.door === "http" ? { url: checks.url } : { command, args, env: checks.serverEnv };
  const client = new MCPClient({ id: `check-${number++}`, servers: { python }, timeout: 60_000 });
  const tools = await (client.listTools?.() ?? client.getTools());
  return {
    tools: async () => Object.keys(tools).map((name) => name.replace(/^python_/, "")),
    call: async (given, { name = checks.TOOL } = {}) => {
      const tool = tools[`python_${name}`];
      try {
        const output = await tool.execute(given, {});
        return seen((await tool.toModelOutput?.(output)) ?? output, output?.isError || output?.error || undefined ? true : undefined);
      } catch (error) {
        // Its agents hand the words of what a tool throws to the model.
        return seen(error.message, true);
      }
    },
    close: () => client.disconnect(),
  };
}

const none = "asks for no progress";
const without = { progress: none, heartbeat: none, unknown: "calls only tools that were listed", cancel: "has no way to give a call up" };
await checks.run({ client: "Mastra", version: version("@mastra/mcp"), open, without });
