// LangChain.js: the content of a tool's message, or the words of the ToolException, which its agents hand to the model.
import * as checks from "./checks.mjs";
import { load, version } from "./package_of.mjs";
import { seen } from "./seen.mjs";

const { MultiServerMCPClient } = await load("@langchain/mcp-adapters");

async function open() {
  const [command, ...args] = checks.command;
  const python = checks.door === "http" ? { transport: "http", url: checks.url.href } : { transport: "stdio", command, args, env: checks.serverEnv };
  let told;
  const client = new MultiServerMCPClient({ mcpServers: { python }, onProgress: (note) => told?.push(note) });
  const tools = Object.fromEntries((await client.getTools()).map((tool) => [tool.name, tool]));
  return {
    tools: async () => Object.keys(tools),
    call: async (given, { name = checks.TOOL, progress, signal } = {}) => {
      told = progress;
      try {
        const message = await tools[name].invoke({ type: "tool_call", id: "1", name, args: given }, { signal });
        return seen(message.content, message.status === "error" || undefined);
      } catch (error) {
        if (error?.name === "ToolException") return seen(error.message, true);
        throw error;
      }
    },
    close: () => client.close(),
  };
}

await checks.run({
  client: "LangChain.js",
  version: version("@langchain/mcp-adapters"),
  open,
  without: { unknown: "calls only tools that were listed" },
});
