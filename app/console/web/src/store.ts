/** A value that components follow. */
import { useEffect, useState } from "preact/hooks";

export interface Store<T> {
  get(): T;
  set(value: T): void;
  use(): T;
}

export function createStore<T>(initial: T): Store<T> {
  let value = initial;
  const followers = new Set<(value: T) => void>();
  return {
    get: () => value,
    set(next) {
      if (Object.is(next, value)) return;
      value = next;
      for (const follower of [...followers]) follower(next);
    },
    use() {
      const [seen, see] = useState(value);
      useEffect(() => {
        see(() => value); // it may have changed before the effect ran
        const follower = (next: T) => see(() => next);
        followers.add(follower);
        return () => void followers.delete(follower);
      }, []);
      return seen;
    },
  };
}
