/** A tab of the page: a worker with one export, what it says, and a translation at a time. */
import type { Pixels, Settings, Table } from "../bbdm";
import type { Reply, Request } from "../protocol";
import { Options, type Name } from "./options";
import { turns } from "./turns";

export type Answer<Kind extends Reply["kind"]> = Reply & { kind: Kind };

export abstract class Tab {
  protected settings: Settings | null = null;
  protected broken = false; // the export could not be fetched or started
  protected readonly slow: boolean = false; // whether a translation takes so long that a call is timed before
  protected running = 0; // the number of the translation that goes on, or 0
  protected readonly options: Options;
  protected readonly opened: Promise<Settings>;
  readonly started: Promise<void>; // the network is there
  protected readonly turn = turns(); // of files and addresses that are read
  private worker: Worker | null = null;
  private count = 0; // of translations
  private hasStarted!: () => void;
  private hasOpened!: (settings: Settings) => void;
  private readonly bar: HTMLProgressElement;

  /**
   * @param root the tab's panel; the ids of what is in it begin with its own
   * @param model the address of its export
   * @param names the options that it offers
   * @param preferred the solver that is the default where the export has a table of it; else the export's own is
   */
  constructor(
    protected readonly root: HTMLElement,
    readonly model: string,
    names: readonly Name[],
    preferred?: string,
  ) {
    this.opened = new Promise((resolve) => (this.hasOpened = resolve));
    this.started = new Promise((resolve) => (this.hasStarted = resolve));
    this.options = new Options(this.element("advanced"), this.element("told"), names, () => this.chosen(), preferred);
    this.bar = this.element("bar");
  }

  /** Fetches the export, once. */
  open(): void {
    if (this.worker) return;
    this.worker = new Worker(new URL("../worker/worker.ts", import.meta.url), { type: "module" });
    this.worker.addEventListener("message", ({ data }: MessageEvent<Reply>) => this.hear(data));
    this.worker.addEventListener("error", (event) => {
      this.failed({ kind: "failed", reason: event.message || "the worker cannot be loaded: reload the page" });
    });
    this.fetch();
  }

  /** Downloads another export, so that it is there without a connection; the tab is open. */
  keep(model: string): void {
    this.send({ kind: "keep", model });
  }

  /** A file is given to the tab. */
  abstract give(file: File): Promise<void>;

  /** An option was chosen, or the network is there after all. */
  protected abstract chosen(): void;

  protected abstract step(reply: Answer<"step">): void;

  /** A network call on a window took so many seconds. */
  protected abstract timed(seconds: number): void;

  protected abstract windows(reply: Answer<"windows">): void;

  /** The translation that goes on ends. */
  protected abstract finish(seconds: number | null): void;

  protected element<T extends HTMLElement>(id: string): T {
    return this.root.querySelector<T>(`#${this.root.id}-${id}`)!;
  }

  /** Translates, in place of what is being translated. */
  protected translate(source: Pixels, seeds: bigint[], byWindows: boolean, compared = false): void {
    const { table, told, device } = this.options;
    this.running = ++this.count;
    this.show(undefined);
    const request = { id: this.running, source, byWindows, seeds, compared, table, told, device };
    this.send({ kind: "translate", ...request }, [source.data.buffer]);
  }

  protected stop(): void {
    if (!this.running) return;
    this.send({ kind: "stop" });
    this.end(null);
  }

  /** Tells everybody what happens; screen readers wait for a pause. */
  protected say(text: string): void {
    this.element("status").textContent = text;
  }

  /** Tells everybody what is wrong, at once, and what can be done. */
  protected warn(text: string, action = "", act: () => void = () => undefined): void {
    const place = this.element("warning");
    place.textContent = text;
    place.hidden = text === "";
    if (!action) return;
    const button = document.createElement("button");
    [button.type, button.textContent] = ["button", action];
    button.addEventListener("click", () => {
      this.warn("");
      act();
    });
    place.append(" ", button);
  }

  /** Shows a share of the bar; undefined for work of unknown length, null for none. */
  protected show(share: number | undefined | null): void {
    this.bar.classList.toggle("idle", share === null);
    if (typeof share === "number") this.bar.value = share;
    else this.bar.removeAttribute("value");
  }

  private send(message: Request, given: Transferable[] = []): void {
    this.worker!.postMessage(message, given);
  }

  private fetch(): void {
    this.say("Fetching the network.");
    this.show(undefined);
    this.send({ kind: "open", model: this.model, timed: this.slow });
  }

  private end(seconds: number | null): void {
    this.running = 0;
    this.show(null);
    this.finish(seconds);
  }

  private hear(reply: Reply): void {
    if ("id" in reply && reply.id !== undefined && reply.id !== this.running) return; // of a translation that was replaced
    if (reply.kind === "opened") this.learn(reply);
    if (reply.kind === "loading") this.loading(reply);
    if (reply.kind === "starting") this.starting(reply);
    if (reply.kind === "ready") this.ready(reply);
    if (reply.kind === "timed") this.timed(reply.seconds);
    if (reply.kind === "refused") this.refused(reply);
    if (reply.kind === "windows") this.windows(reply);
    if (reply.kind === "step") this.step(reply);
    if (reply.kind === "done") this.end(reply.seconds);
    if (reply.kind === "failed") this.failed(reply);
  }

  private learn({ settings, tables }: { settings: Settings; tables: Table[] }): void {
    if (![1, 3].includes(settings.image_channels)) {
      return this.failed({ kind: "failed", reason: `pictures of ${settings.image_channels} channels cannot be shown` });
    }
    this.settings = settings;
    this.options.offer(settings, tables);
    this.hasOpened(settings);
  }

  private loading({ loaded, total, cached }: Answer<"loading">): void {
    const size = total ? `${(loaded / 1e6).toFixed(1)} of ${megabytes(total)}` : megabytes(loaded);
    this.show(total ? Math.min(1, loaded / total) : undefined);
    this.say(cached ? `Loading the network from this browser: ${size}.` : `Downloading the network: ${size}.`);
  }

  private starting({ device }: Answer<"starting">): void {
    this.show(undefined);
    this.say(device === "wasm" ? "Starting the network." : "Starting the graphics card, and comparing one step.");
  }

  private ready({ device, threads }: Answer<"ready">): void {
    if (!this.running) this.show(null);
    const processor = `the processor, with ${threads} ${threads === 1 ? "thread" : "threads"}`;
    this.root.querySelector(".computer")!.textContent = `Computed by ${device === "webgpu" ? "the graphics card" : processor}.`;
    this.say("Ready.");
    this.hasStarted();
    if (!this.broken) return;
    this.broken = false;
    this.warn("");
    this.chosen(); // what was to be translated
  }

  private refused({ reason }: Answer<"refused">): void {
    this.options.device = "wasm";
    this.warn(`The graphics card is not used: ${sentence(reason)} The processor goes on.`);
  }

  private failed({ id, reason }: Answer<"failed">): void {
    this.end(null);
    this.say("");
    this.broken ||= id === undefined;
    if (id === undefined) this.warn(sentence(reason), "Try again", () => this.fetch());
    else this.warn(sentence(reason));
  }
}

function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}

/** A reason with one full stop. */
function sentence(reason: string): string {
  return reason.replace(/\.*$/, ".");
}
