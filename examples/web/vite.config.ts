/** npm run build: the page, the exports beside it, its opening pictures, and what the service worker keeps. */
import { createHash } from "node:crypto";
import { cpSync, existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { defaultClientConditions, defineConfig, runnerImport, type Plugin } from "vite";

const EXPORTS = Object.entries({ drawings: "../demo/onnx", photographs: "../demo/photographs" })
  .map(([name, folder]) => [name, fileURLToPath(new URL(folder, import.meta.url))] as const)
  .filter(([, folder]) => existsSync(folder)); // put beside the page; the archive of a release has the first alone
const ISOLATED = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };

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

/** Tells the service worker which files there are, without networks and what only WebGPU or photographs need. */
function list(): void {
  const files = written()
    .filter((name) => /\.\w+$/.test(name) && !/^sw\.js$|^photographs|webgpu|asyncify|\.onnx\.|\.map$/.test(name))
    .sort();
  const hash = createHash("sha256");
  for (const name of files) hash.update(name).update(readFileSync(`dist/${name}`));
  const build = JSON.stringify(hash.digest("hex").slice(0, 16));
  const worker = readFileSync("dist/sw.js", "utf8").replace("__BUILD__", build);
  writeFileSync("dist/sw.js", worker.replace("__FILES__", JSON.stringify(["./", ...files])));
}

function beside(): Plugin {
  return {
    name: "beside",
    apply: "build", // not where vitest reads this file
    transformIndexHtml: (html) => html.replace("<body>", `<body data-exports="${EXPORTS.map(([name]) => name).join(" ")}">`),
    async closeBundle() {
      for (const [name, folder] of EXPORTS) copy(folder, `dist/${name}`);
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
