/** ONNX Runtime for a device: WASM comes with the page, and WebGPU is fetched where it is asked for. */
import wasmModule from "onnxruntime-web/ort-wasm-simd-threaded.mjs?url";
import wasmBinary from "onnxruntime-web/ort-wasm-simd-threaded.wasm?url";
import webgpuModule from "onnxruntime-web/ort-wasm-simd-threaded.asyncify.mjs?url";
import webgpuBinary from "onnxruntime-web/ort-wasm-simd-threaded.asyncify.wasm?url";
import type { Runtime } from "../bbdm";
import type { Device } from "../protocol";
import { fetchPacked } from "./download";

const THREADS = 4; // at most: more gain little on a network of this size

/** Threads that WASM may use: one, unless the page is isolated from other origins. */
export const threads = self.crossOriginIsolated ? Math.min(THREADS, navigator.hardwareConcurrency) : 1;

export async function runtime(device: Device): Promise<Runtime> {
  if (device === "webgpu" && !(await navigator.gpu?.requestAdapter())) throw new Error("this browser offers no WebGPU");
  const ort = device === "webgpu" ? await import("onnxruntime-web/webgpu") : await import("onnxruntime-web/wasm");
  const [mjs, binary] = device === "webgpu" ? [webgpuModule, webgpuBinary] : [wasmModule, wasmBinary];
  ort.env.wasm.wasmPaths = { mjs: new URL(mjs, self.location.href).href };
  const packed = await fetchPacked(new URL(binary, self.location.href));
  ort.env.wasm.wasmBinary = await packed.arrayBuffer().catch(() => {
    throw new Error("The download of ONNX Runtime was cut: the connection is gone, or the server stopped");
  });
  ort.env.wasm.numThreads = threads;
  ort.env.logLevel = "error";
  return ort;
}
