/** The service worker, with a cache that takes nothing. */
import { expect, it, vi } from "vitest";
import "../../src/worker/sw";

const ADDRESS = "https://host/page/";
const { handlers, cache } = vi.hoisted(() => {
  const handlers = new Map<string, (event: unknown) => void>();
  const full = new DOMException("no space left", "QuotaExceededError");
  const cache = { match: async () => undefined, put: async () => Promise.reject(full) };
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

it("answers from the network where the cache takes nothing", async () => {
  const put = vi.spyOn(cache, "put");
  const respondWith = vi.fn<(response: Promise<Response>) => void>();
  handlers.get("fetch")!({ request: new Request(ADDRESS), respondWith });
  const response = await respondWith.mock.calls[0]![0];
  expect(await response.text()).toBe("from the network");
  expect(put).toHaveBeenCalledOnce();
});
