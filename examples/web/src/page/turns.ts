/** The order of what takes its time to be read: what began last wins. */

/** Begins a turn; what this returns says whether no later one began. */
export type Begin = () => () => boolean;

/** Turns of one kind. */
export function turns(): Begin {
  let last = 0;
  return () => {
    const own = ++last;
    return () => own === last;
  };
}
