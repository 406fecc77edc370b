/** npm run build: the page, the bundled export beside it, and the list of files that the service worker keeps. */
import { createHash } from "node:crypto";
import { cpSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { defaultClientConditions, defineConfig, type Plugin } from "vite";

const MODEL = fileURLToPath(new URL("../demo/onnx", import.meta.url));
const ISOLATED = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };

function beside(): Plugin {
  return {
    name: "beside",
    apply: "build", // not where vitest reads this file
    closeBundle() {
      cpSync(MODEL, "dist/model", { recursive: true, filter: (path) => !/(step|pipeline)\.onnx$/.test(path) });
      const files = (readdirSync("dist", { recursive: true }) as string[])
        .map((name) => name.replaceAll("\\", "/"))
        .filter((name) => /\.\w+$/.test(name) && !/^sw\.js$|webgpu|asyncify|\.onnx$|\.map$/.test(name))
        .sort();
      const hash = createHash("sha256");
      for (const name of files) hash.update(name).update(readFileSync(`dist/${name}`));
      const build = JSON.stringify(hash.digest("hex").slice(0, 16));
      const worker = readFileSync("dist/sw.js", "utf8").replace("__BUILD__", build);
      writeFileSync("dist/sw.js", worker.replace("__FILES__", JSON.stringify(["./", ...files])));
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
