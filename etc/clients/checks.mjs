// The checks of checks.py for clients in JavaScript: the same names, the same demands.
//
// A script hands `run` a function that opens a session: { tools(), call(args, { name, progress, signal }), close() }. `call` gives { text, images,
// error }, what a model would get to see; `progress` is a list that what the server tells meanwhile is appended to; `signal` gives the call up.

const env = process.env;
export const door = env.DOOR;
export const url = new URL(env.SERVER_URL);
export const command = JSON.parse(env.SERVER_COMMAND);
export const serverEnv = JSON.parse(env.SERVER_ENV);
export const TOOL = "execute_python";

const TOOLS = [TOOL, "install_packages", "list_preinstalled_packages", "get_environment_info"];
const FIGURE = "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3])\nplt.show()";
const FIGURES =
  "import matplotlib.pyplot as plt\nfor n in range(20):\n    plt.figure()\n    plt.plot([1, 2, n])\n    plt.title(str(n))\nplt.show()";
const NOISE =
  "import numpy as np\nfrom PIL import Image\nImage.fromarray(np.random.default_rng(0).integers(0, 255, (1000, 1000, 3), dtype='uint8'))";
const LINES = "import time\nfor n in range(5):\n    print('line', n, flush=True)\n    time.sleep(0.5)";
const SILENT = "import time\ntime.sleep(12)\n'woke'";
const HUMAN = "import humanize\nhumanize.naturalsize(1234567)";
const WARNED = /warnings\\*"\s*:\s*\[\s*(\\n\s*)?\\*"/; // at least one, also where the JSON is inside of a string
const IMAGE_STARTS = ["iVBOR", "/9j/", "UklGR"]; // PNG, JPEG, WebP in base64

/** The answer that a result of the protocol holds. */
export function answer(result) {
  const parts = (type) => (result.content ?? []).filter((part) => part.type === type);
  const text = parts("text").map((part) => part.text).join("");
  return { text, images: parts("image").map((part) => part.data), error: !!result.isError };
}

class Missed extends Error {}
const shown = (seen) => (typeof seen === "string" ? seen : JSON.stringify(seen) ?? String(seen)).slice(0, 300);
function want(truth, seen) {
  if (!truth) throw new Missed(shown(seen));
}
const words = (error) => (error instanceof Missed ? error.message : `${error?.name ?? "Error"}: ${error?.message ?? error}`.slice(0, 300));
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const watch = async (path) => (await fetch(`${env.WATCH_URL}/${path}`)).json();

async function alive(session) {
  const got = await session.call({ code: "6 * 7" });
  want(got.text.includes("42") && !got.error, got);
}

async function cancelled(session, progress) {
  const stop = new AbortController();
  const running = session.call({ code: env.SPIN_CODE, timeout: 60 }, { signal: stop.signal, progress }).catch(() => {});
  want((await watch("busy")).busy, "the code did not start");
  stop.abort("the user");
  const { seconds } = await watch("gone");
  await Promise.race([running, sleep(5000)]);
  want(seconds !== null && seconds < 1, seconds === null ? "ran on" : `gone after ${seconds} s`);
  await alive(session);
  return `${seconds} s`;
}

const common = {
  async list(session) {
    const names = await session.tools();
    want(TOOLS.every((name) => names.includes(name)), names);
    return `${names.length} tools`;
  },
  async print(session) {
    const got = await session.call({ code: "print('hel' + 'lo')" });
    want(got.text.includes("hello") && !got.error, got);
  },
  async error(session) {
    const got = await session.call({ code: "x = 1\n1 / 0" });
    want(got.error && got.text.includes("ZeroDivisionError"), got);
  },
  async plot(session) {
    const { text, images } = await session.call({ code: FIGURE });
    const sound = images.length === 1 && IMAGE_STARTS.some((start) => images[0].startsWith(start)) && images[0].length > 1000;
    want(sound, `no image, but ${text}`);
  },
  async requirements(session) {
    const got = await session.call({ code: HUMAN, requirements: ["humanize"] });
    want(got.text.includes("1.2 MB"), got);
  },
  async progress(session) {
    const told = [];
    const got = await session.call({ code: LINES }, { progress: told });
    want(!got.error && told.length >= 4, `${told.length} notifications`);
    return `${told.length} notifications`;
  },
  async timeout(session) {
    const got = await session.call({ code: "import time\ntime.sleep(9)", timeout: 1 });
    want(got.error && got.text.includes("timeout"), got);
  },
  async unknown(session) {
    let note = "";
    try {
      const got = await session.call({}, { name: "no_such_tool" });
      want(got.error, got);
    } catch (error) {
      if (error instanceof Missed) throw error;
      note = `raises ${error?.name}`;
    }
    await alive(session);
    return note;
  },
  async arguments(session) {
    const call = async (given) => {
      try {
        return await session.call(given);
      } catch (error) {
        throw new Missed(`${JSON.stringify(given)} raises ${words(error)}`.slice(0, 300));
      }
    };
    for (const [given, named] of [
      [{}, "code"],
      [{ code: ["1"], timeout: 5 }, "code"],
      [{ code: "6 * 7", timeout: "soon" }, "timeout"],
    ]) {
      const got = await call(given);
      want(got.error && got.text.includes(named), { given, got });
    }
    for (const timeout of [1000, "10"]) {
      const got = await call({ code: "6 * 7", timeout });
      want(got.text.includes("42") && !got.error, { timeout, got });
    }
  },
};

const own = {
  async cancel(session) {
    return `${await cancelled(session)}, with progress ${await cancelled(session, [])}`;
  },
  async large(session) {
    const got = await session.call({ code: "print('x' * 3_000_000)" });
    want(got.text.split("x").length > 3_000_000 && !got.error, `${got.text.length} characters: ${got.text.slice(0, 100)}`);
  },
  async images(session) {
    const notes = [];
    for (const [code, wanted] of [
      [NOISE, 1],
      [FIGURES, 20],
    ]) {
      const { text, images, error } = await session.call({ code });
      want(!error, text);
      want(images.length || wanted === 1, `none of ${wanted} images: ${text.slice(0, 200)}`);
      want(images.length === wanted || WARNED.test(text), `${images.length} of ${wanted} images, and no word of it: ${text.slice(0, 200)}`);
      notes.push(`${images.length} of ${wanted}, ${Math.round(images.join("").length / 1000)} KB`);
    }
    return notes.join("; ");
  },
};

async function heartbeat(session) {
  const told = [];
  const began = Date.now();
  let done = false;
  const running = session.call({ code: SILENT }, { progress: told }).finally(() => (done = true));
  while (!told.length && !done) await Promise.race([sleep(100), running]);
  const first = (Date.now() - began) / 1000;
  const got = await running;
  want(told.length, "12 s of silence");
  want(got.text.includes("woke") && first < 11, `first sign after ${first} s`);
}

/** Runs all checks but those that the client does not offer (`without` says why), prints their lines and ends the process. */
export async function run({ client, version, open, without = {} }) {
  without = { ...without, ...(env.OFFLINE ? { requirements: "offline" } : {}) };
  for (const name of ["log", "warn", "error", "info", "debug"]) console[name] = (...said) => process.stderr.write(`${said.join(" ")}\n`);
  const say = (check, ok, note) => {
    const line = { client, version, door, check, ok, note: (note ?? "").replace(/\s+/g, " ") };
    process.stdout.write(`${JSON.stringify(line)}\n`);
  };
  const step = async (name, check, session) => {
    if (name in without) return say(name, null, without[name]);
    let mine;
    try {
      const work = (async () => check(session ?? (mine = await open())))();
      const late = sleep(60_000).then(() => {
        throw new Missed("no answer in 60 s");
      });
      late.catch(() => {});
      say(name, true, await Promise.race([work, late]));
    } catch (error) {
      say(name, false, words(error));
    } finally {
      await Promise.race([mine?.close?.().catch?.(() => {}), sleep(5000)]);
    }
  };
  const beat = step("heartbeat", heartbeat);
  try {
    const session = await open();
    for (const [name, check] of Object.entries(common)) await step(name, check, session);
    await beat;
    await Promise.race([session.close(), sleep(5000)]);
    for (const [name, check] of Object.entries(own)) await step(name, check);
  } catch (error) {
    say("list", false, words(error));
  }
  process.exit(0);
}
