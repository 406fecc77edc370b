/**
 * The service worker: the page opens without a network, and from its second visit on it is isolated from other
 * origins, which lets WASM use several threads on a host that sends no headers. Weights are not kept here: see
 * download.ts.
 */
declare const __FILES__: string[]; // what the build wrote, without what only WebGPU needs: see vite.config.ts
declare const __BUILD__: string; // a hash of them
const worker = self as unknown as ServiceWorkerGlobalScope;
const ISOLATED = {
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-embedder-policy": "require-corp",
  "cross-origin-resource-policy": "same-origin",
};
const CACHE = `bbdm-page-${__BUILD__}`;

worker.addEventListener("install", (event) => {
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(__FILES__)));
  void worker.skipWaiting();
});

worker.addEventListener("activate", (event) => {
  const old = caches.keys().then((names) => names.filter((name) => name.startsWith("bbdm-page-") && name !== CACHE));
  event.waitUntil(old.then((names) => Promise.all(names.map((name) => caches.delete(name)))).then(() => worker.clients.claim()));
});

worker.addEventListener("fetch", (event) => {
  const { method, url } = event.request;
  if (method === "GET" && !/\.onnx(\.gzip)?$/.test(new URL(url).pathname)) event.respondWith(answer(event.request));
});

/** Files named by their content come from the cache first, others from the network first. */
async function answer(request: Request): Promise<Response> {
  const cache = await caches.open(CACHE);
  const { origin, pathname } = new URL(request.url);
  const fixed = pathname.startsWith(new URL("assets/", worker.registration.scope).pathname);
  const kept = await cache.match(request, { ignoreSearch: request.mode === "navigate", ignoreVary: true });
  if (fixed && kept) return isolated(kept);
  const fetched = await fetch(request).catch(() => null);
  const place = request.mode === "navigate" ? origin + pathname : request;
  if (fetched?.ok) await cache.put(place, fetched.clone()).catch(() => undefined); // no space left, or not to be kept
  const response = fetched?.ok ? fetched : (kept ?? fetched ?? Response.error());
  return origin === worker.location.origin ? isolated(response) : response;
}

function isolated(response: Response): Response {
  if (response.type === "error" || response.type === "opaqueredirect") return response;
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(ISOLATED)) headers.set(name, value);
  const empty = [204, 205, 304].includes(response.status);
  return new Response(empty ? null : response.body, { status: response.status, statusText: response.statusText, headers });
}
