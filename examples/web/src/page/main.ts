/** The page: its two tabs, and where files and addresses go. */
import { textOf } from "../png";
import { Drawings } from "./drawings";
import { Photographs } from "./photographs";
import type { Tab } from "./tab";
import { turns } from "./turns";
import "./style.css";

const query = new URLSearchParams(location.search);

function element<T extends HTMLElement>(id: string): T {
  return document.getElementById(id) as T;
}

/** The address of a tab's export: the query's, or a folder beside the page. */
function model(name: string, folder: string): string {
  const given = query.get(name) ?? folder;
  return new URL(given.endsWith("/") ? given : `${given}/`, document.baseURI).href;
}

function asPhotograph(file: File): void {
  select("photographs");
  void photographs.give(file);
}

const drawings = new Drawings(element("drawings"), model("model", "drawings/"), !query.has("model"), asPhotograph);
const own = !query.has("photographs");
const photographs = new Photographs(element("photographs"), model("photographs", "photographs/"), own, (file) => {
  select("drawings");
  void drawings.give(file);
});
const tabs: Record<string, Tab> = { drawings, photographs };
let shown = "drawings";

function select(name: string): void {
  shown = name;
  for (const each of Object.keys(tabs)) {
    const button = element<HTMLButtonElement>(`${each}-tab`);
    button.setAttribute("aria-selected", String(each === name));
    button.tabIndex = each === name ? 0 : -1;
    element(each).hidden = each !== name;
  }
  tabs[name]!.open();
}

const turn = turns(); // of files

/** A picture that this page saved opens its drawing; others go to the tab that is shown. */
async function give(file: File): Promise<void> {
  const newest = turn();
  const text = textOf(new Uint8Array(await file.slice(0, 2 ** 20).arrayBuffer()));
  if (!newest()) return;
  if (text === undefined) return tabs[shown]!.give(file);
  select("drawings");
  await drawings.load(new URLSearchParams(text));
}

for (const name of Object.keys(tabs)) {
  const button = element(`${name}-tab`);
  button.addEventListener("click", () => select(name));
  button.addEventListener("keydown", ({ key }) => {
    if (!["ArrowLeft", "ArrowRight", "Home", "End"].includes(key)) return;
    const names = Object.keys(tabs);
    const to = key === "Home" ? 0 : key === "End" ? names.length - 1 : (names.indexOf(name) + 1) % names.length;
    select(names[to]!);
    element(`${names[to]}-tab`).focus();
  });
  const field = element<HTMLInputElement>(`${name}-file`);
  field.addEventListener("change", () => {
    const chosen = field.files?.[0];
    if (chosen) void give(chosen);
    field.value = "";
  });
}
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  const dropped = event.dataTransfer?.files[0];
  if (dropped) void give(dropped);
});
window.addEventListener("hashchange", () => {
  const address = new URLSearchParams(location.hash.slice(1));
  if (address.has("drawing") || address.has("picture")) void drawings.load(address);
});

// Each tab is there without a connection after the first visit
if (!query.has("model") && !query.has("photographs")) {
  void drawings.started.then(() => drawings.keep(photographs.model));
  void photographs.started.then(() => photographs.keep(drawings.model));
}

const address = new URLSearchParams(location.hash.slice(1));
for (const [name, value] of query) if (!address.has(name)) address.set(name, value);
drawings.begin(address);
photographs.begin(query);
select(address.get("tab") === "photographs" ? "photographs" : "drawings");
void navigator.serviceWorker?.register("sw.js").catch(() => undefined); // without it, all works but offline and threads
