// Packages of the client's environment: the scripts lie elsewhere, so a bare import would not find them.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const folder = process.env.ENVIRONMENT;
const { resolve } = createRequire(join(folder, "package.json"));

/** A package's module, as `import` would give it. */
export const load = (name) => import(pathToFileURL(resolve(name)).href);

export const version = (name) => JSON.parse(readFileSync(join(folder, "node_modules", name, "package.json"))).version;
