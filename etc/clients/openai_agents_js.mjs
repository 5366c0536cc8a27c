// OpenAI Agents for JavaScript: the output of the function tool that its agents make of an MCP tool.
import * as checks from "./checks.mjs";
import { load, version } from "./package_of.mjs";
import { seen } from "./seen.mjs";

const { Agent, MCPServerStdio, MCPServerStreamableHttp, RunContext, getAllMcpTools, setTracingDisabled } = await load("@openai/agents");
setTracingDisabled(true);

async function open() {
  const [command, ...args] = checks.command;
  const server =
    checks.door === "http"
      ? new MCPServerStreamableHttp({ url: checks.url.href, name: "python" })
      : new MCPServerStdio({ command, args, env: checks.serverEnv, name: "python" });
  await server.connect();
  const context = new RunContext();
  const listed = await getAllMcpTools({ mcpServers: [server], runContext: context, agent: new Agent({ name: "check" }) });
  const tools = Object.fromEntries(listed.map((tool) => [tool.name, tool]));
  return {
    tools: async () => Object.keys(tools),
    call: async (given, { name = checks.TOOL, signal } = {}) => seen(await tools[name].invoke(context, JSON.stringify(given), { signal })),
    close: () => server.close(),
  };
}

const none = "asks for no progress";
const without = { progress: none, heartbeat: none, unknown: "calls only tools that were listed" };
await checks.run({ client: "OpenAI Agents (JS)", version: version("@openai/agents"), open, without });
