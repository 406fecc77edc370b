/** The service worker, with a cache that takes nothing, and holds what a test puts into it. */
import { expect, it, vi } from "vitest";
import "../../src/worker/sw";

const ADDRESS = "https://host/page/";
const { handlers, cache } = vi.hoisted(() => {
  const handlers = new Map<string, (event: unknown) => void>();
  const full = new DOMException("no space left", "QuotaExceededError");
  const cache = { match: async (..._: unknown[]): Promise<Response | undefined> => undefined, put: async () => Promise.reject(full) };
  vi.stubGlobal("__BUILD__", "tested");
  vi.stubGlobal("caches", { open: async () => cache });
  vi.stubGlobal("fetch", async () => new Response("from the network"));
  vi.stubGlobal("self", {
    addEventListener: (name: string, handler: (event: unknown) => void) => handlers.set(name, handler),
    location: new URL("https://host/page/sw.js"),
    registration: { scope: "https://host/page/" },
  });
  return { handlers, cache };
});

async function answer(path: string): Promise<string> {
  const respondWith = vi.fn<(response: Promise<Response>) => void>();
  handlers.get("fetch")!({ request: new Request(ADDRESS + path), respondWith });
  return (await respondWith.mock.calls[0]![0]).text();
}

it("answers from the network where the cache takes nothing", async () => {
  const put = vi.spyOn(cache, "put");
  expect(await answer("")).toBe("from the network");
  expect(put).toHaveBeenCalledOnce();
});

it("answers with what is kept, whatever request it is of: servers send Vary: Origin", async () => {
  vi.spyOn(cache, "match").mockImplementation(async (_, options) =>
    (options as CacheQueryOptions).ignoreVary ? new Response("kept") : undefined,
  );
  expect(await answer("assets/index-1.js")).toBe("kept");
});
