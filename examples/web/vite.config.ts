/** npm run build: the page, the exports beside it, its opening pictures, and what the service worker keeps. */
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { cpSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { gzipSync } from "node:zlib";
import { defaultClientConditions, defineConfig, runnerImport, type Plugin } from "vite";

const EXPORTS = ["drawings", "photographs"]; // what exports.py writes, and what is put beside the page
const ISOLATED = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };

/** Exports the bundled networks into exports/, with Python: $PYTHON, or python. */
function exported(): Promise<void> {
  const python = process.env.PYTHON ?? "python";
  const child = spawn(python, ["-m", "examples.web.exports"], { cwd: "../..", stdio: "inherit" });
  return new Promise((resolve, reject) => {
    const failed = (reason: string): void =>
      reject(new Error(`${python} -m examples.web.exports ${reason}; it needs pip install -e '.[export]', and PYTHON may name another`));
    child.on("error", (error) => failed(`cannot run: ${error.message}`));
    child.on("exit", (code) => (code === 0 ? resolve() : failed(`ended with ${code}`)));
  });
}

/** The files of dist/. */
function written(): string[] {
  return (readdirSync("dist", { recursive: true }) as string[]).map((name) => name.replaceAll("\\", "/"));
}

/** Compresses a file, since many hosts compress none of its type; src/worker/download.ts unpacks it. */
function pack(name: string): void {
  writeFileSync(`${name}.gzip`, gzipSync(readFileSync(name), { level: 9 }));
  rmSync(name);
}

/** Puts the graphs that the page needs of an export beside it. */
function copy(from: string, to: string): void {
  cpSync(from, to, { recursive: true, filter: (path) => !/(step|pipeline)\.onnx$/.test(path) });
  const settings = JSON.parse(readFileSync(`${to}/bridge.json`, "utf8"));
  writeFileSync(`${to}/bridge.json`, JSON.stringify({ ...settings, packed: true }));
}

/** Tells the service worker which files there are, without networks and what only WebGPU needs. */
function list(): void {
  const files = written()
    .filter((name) => /\.\w+$/.test(name) && !/^sw\.js$|webgpu|asyncify|\.onnx\.|\.map$/.test(name))
    .sort();
  const hash = createHash("sha256");
  for (const name of files) hash.update(name).update(readFileSync(`dist/${name}`));
  const build = JSON.stringify(hash.digest("hex").slice(0, 16));
  const worker = readFileSync("dist/sw.js", "utf8").replace("__BUILD__", build);
  writeFileSync("dist/sw.js", worker.replace("__FILES__", JSON.stringify(["./", ...files])));
}

function beside(): Plugin {
  let exports: Promise<void>;
  return {
    name: "beside",
    apply: "build", // not where vitest reads this file
    buildStart() {
      exports ??= exported(); // beside the page's own build
      exports.catch(() => undefined); // it is awaited below
    },
    async closeBundle() {
      await exports;
      for (const name of EXPORTS) copy(`exports/${name}`, `dist/${name}`);
      const { module } = await runnerImport<typeof import("./opening")>("./opening.ts");
      writeFileSync("dist/opening.png", await module.openingPicture("dist/drawings"));
      for (const name of written().filter((each) => /\.(wasm|onnx)$/.test(each))) pack(`dist/${name}`);
      list();
    },
  };
}

export default defineConfig({
  base: "./", // any folder of any host
  plugins: [beside()],
  resolve: { conditions: ["onnxruntime-web-use-extern-wasm", ...defaultClientConditions] },
  worker: { format: "es" },
  preview: { headers: ISOLATED },
  build: {
    target: "es2022",
    chunkSizeWarningLimit: 1024,
    rollupOptions: {
      input: { index: "index.html", sw: "src/worker/sw.ts" },
      output: { entryFileNames: ({ name }) => (name === "sw" ? "sw.js" : "assets/[name]-[hash].js") },
    },
  },
});
