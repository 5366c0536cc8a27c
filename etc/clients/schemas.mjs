// The tool list under ajv, the validator of every client in JavaScript, in both of its dialects and with nothing waved through.
import { load, version } from "./package_of.mjs";

const asked = await fetch(process.env.SERVER_URL, {
  method: "POST",
  headers: { "content-type": "application/json", accept: "application/json" },
  body: JSON.stringify({ jsonrpc: "2.0", id: 1, method: "tools/list", params: {} }),
});
const { tools } = (await asked.json()).result;
for (const [dialect, module] of [
  ["draft-07", "ajv"],
  ["2020-12", "ajv/dist/2020.js"],
]) {
  const { default: loaded } = await load(module);
  const Ajv = loaded.default ?? loaded;
  const faults = [];
  for (const tool of tools) {
    for (const key of ["inputSchema", "outputSchema"]) {
      if (!tool[key]) continue;
      const told = (...words) => faults.push(`${tool.name}.${key}: ${words.join(" ")}`);
      try {
        const valid = new Ajv({ strict: true, logger: { log: told, warn: told, error: told } }).compile(tool[key]);
        if (tool.name === "execute_python" && key === "inputSchema") {
          if (!valid({ code: "1", timeout: 5, policy: "open" })) told("refuses a right call", JSON.stringify(valid.errors));
          if (valid({})) told("takes a call without code");
        }
      } catch (error) {
        told(error.message);
      }
    }
  }
  const line = { client: "ajv", version: version("ajv"), door: process.env.DOOR, check: `tool list, ${dialect}` };
  process.stdout.write(`${JSON.stringify({ ...line, ok: !faults.length, note: faults.join("; ").slice(0, 300) })}\n`);
}
