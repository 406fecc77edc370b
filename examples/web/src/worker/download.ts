/** Files of an export, with progress, kept in the browser's cache by their hash. */
import { graphs, readSettings, readTable, type Settings, type Table } from "../bbdm";

const CACHE = "bbdm-weights";

/** bridge.json of a folder, and the tables beside it that are of the same bridge. */
export async function readExport(folder: URL): Promise<{ settings: Settings; tables: Table[] }> {
  const response = await fetchFile(new URL("bridge.json", folder), { cache: "no-cache" });
  const settings = readSettings(await response.json().catch(() => null));
  return { settings, tables: await readTables(new URL("tables.json", folder), settings) };
}

/** The tables of tables.json, which may be absent; none of a damaged one. */
async function readTables(url: URL, settings: Settings): Promise<Table[]> {
  const response = await fetch(url, { cache: "no-cache" }).catch(() => null);
  if (!response?.ok) return [];
  try {
    const { bridge, tables } = await response.json();
    const same = JSON.stringify(bridge) === JSON.stringify(settings.bridge);
    return same ? tables.map((table: Table) => readTable(table)) : [];
  } catch (error) {
    console.warn("tables.json is not used:", error);
    return [];
  }
}

/**
 * The graphs of an export, from the cache where it has them; what is damaged there is fetched again.
 *
 * @param progress called with bytes loaded, bytes in all (0 where unknown), and whether all came from the cache
 */
export async function download(
  folder: URL,
  settings: Settings,
  progress: (loaded: number, total: number, cached: boolean) => void,
): Promise<Map<string, Uint8Array>> {
  const names = graphs(settings);
  const responses = await Promise.all(
    names.map((name) => open(new URL(`${name}?sha256=${settings.files[name]}`, folder), settings.packed)),
  );
  const sizes = responses.map(({ response }, i) => settings.sizes?.[names[i]!] ?? sizeOf(response));
  const total = sizes.every((size) => size > 0) ? sizes.reduce((a, b) => a + b) : 0;
  const cached = responses.every((each) => each.cached);
  const files = new Map<string, Uint8Array>();
  let loaded = 0;
  for (const [i, { url, response, cached: kept }] of responses.entries()) {
    const name = names[i]!;
    const content = await read(response, (count) => progress((loaded += count), total, cached)).catch(() => {
      const of = total ? `${(loaded / 1e6).toFixed(1)} of ${(total / 1e6).toFixed(1)}` : (loaded / 1e6).toFixed(1);
      throw new Error(`The download of ${name} was cut after ${of} MB: the connection is gone, or the server stopped`);
    });
    if (!(await matches(content, settings.files[name]!))) {
      if (kept && (await (await caches.open(CACHE)).delete(url))) return download(folder, settings, progress);
      throw new Error(`${name} is not what bridge.json describes: it is damaged, or of another export`);
    }
    if (!kept) await keep(url, content);
    files.set(name, content);
  }
  return files;
}

/** A response for a file; browsers have a cache on https and localhost only. */
async function open(url: URL, packed = false): Promise<{ url: URL; response: Response; cached: boolean }> {
  const kept = "caches" in self ? await (await caches.open(CACHE)).match(url) : undefined;
  if (kept) return { url, response: kept, cached: true };
  return { url, response: await (packed ? fetchPacked : fetchFile)(url), cached: false };
}

/** A file that the build compressed, since many hosts do not: see vite.config.ts. */
export async function fetchPacked(url: URL): Promise<Response> {
  const { body } = await fetchFile(new URL(`${url.origin}${url.pathname}.gzip${url.search}`));
  return new Response(body!.pipeThrough(new DecompressionStream("gzip")));
}

async function fetchFile(url: URL, options?: RequestInit): Promise<Response> {
  const response = await fetch(url, options).catch(() => null);
  if (!response?.ok) {
    const reason = response ? `the server says ${response.status}` : "there is no connection, or the server refuses";
    throw new Error(`${url.origin}${url.pathname} cannot be read: ${reason}`);
  }
  return response;
}

/** The size of a file, where its response says it: a compressed one says another. */
function sizeOf(response: Response): number {
  return response.headers.has("content-encoding") ? 0 : Number(response.headers.get("content-length"));
}

/** The bytes of a response; calls progress with the size of each part. */
async function read(response: Response, progress: (count: number) => void): Promise<Uint8Array> {
  const parts: BlobPart[] = [];
  for (const reader = response.body!.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) return new Uint8Array(await new Blob(parts).arrayBuffer());
    parts.push(value);
    progress(value.length);
  }
}

/** Whether content has a SHA-256, where the browser can compute one. */
async function matches(content: Uint8Array, wanted: string): Promise<boolean> {
  if (!crypto.subtle) return true;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content as Uint8Array<ArrayBuffer>));
  return [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("") === wanted;
}

/** Keeps a file in place of its older versions. */
async function keep(url: URL, content: Uint8Array): Promise<void> {
  if (!("caches" in self)) return;
  const cache = await caches.open(CACHE);
  for (const old of await cache.keys(url, { ignoreSearch: true })) await cache.delete(old);
  const headers = { "content-length": String(content.length) };
  await cache.put(url, new Response(content as Uint8Array<ArrayBuffer>, { headers })).catch(() => undefined); // no space left
}
