/** The KV blocks as a picture: one cell a block, in the order of their numbers. */
import { useEffect, useRef } from "preact/hooks";
import type { Schemas } from "../api";
import { theme } from "../theme";
import { token } from "./chart";

export type Runs = Schemas["BlockMap"]["runs"];
type Run = [state: string, count: number, owner: number];
const SHARED = -1;
const GAP = 1;

export interface Palette {
  free: string;
  cached: string;
  pinned: string;
  shared: string;
  owners: string[];
}

export function palette(): Palette {
  return { free: token("--line"), cached: token("--series-4"), pinned: token("--series-2"), shared: token("--series-3"), owners: [token("--series-1"), token("--accent")] };
}

function colorOf(state: string, owner: number, colors: Palette): string {
  if (state === "free" || state === "cached" || state === "pinned") return colors[state];
  return owner === SHARED ? colors.shared : colors.owners[Math.max(0, owner) % colors.owners.length]!;
}

/** Cells as large as fit: few blocks make large cells, 50,000 make cells of a pixel or two. */
export function cellSize(total: number, width: number): number {
  return Math.max(2, Math.min(14, Math.floor(Math.sqrt((width * Math.max(120, width / 4)) / Math.max(1, total)))));
}

/** Draws runs as rectangles, row by row: the work is by run and row, not by block. Returns the rows used. */
export function draw(context: CanvasRenderingContext2D, runs: Run[], width: number, cell: number, colors: Palette): number {
  const columns = Math.max(1, Math.floor(width / cell));
  const gap = cell > 3 ? GAP : 0;
  let at = 0;
  for (const [state, count, owner] of runs) {
    context.fillStyle = colorOf(state, owner, colors);
    for (let left = count; left > 0; ) {
      const column = at % columns;
      const length = Math.min(left, columns - column);
      const top = Math.floor(at / columns) * cell;
      if (gap) for (let one = 0; one < length; one++) context.fillRect((column + one) * cell, top, cell - gap, cell - gap);
      else context.fillRect(column * cell, top, length * cell, cell);
      at += length;
      left -= length;
    }
  }
  return Math.ceil(at / columns);
}

const NAMES = { free: "Free", cached: "Cached", pinned: "Pinned", shared: "Read by several", owner: "One request's" };

export function BlockMap({ map }: { map: Schemas["BlockMap"] }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const look = theme.use();
  useEffect(() => {
    const element = canvas.current!;
    const width = element.clientWidth;
    const runs = map.runs as unknown as Run[];
    const cell = cellSize(map.total, width);
    const rows = Math.ceil(map.total / Math.max(1, Math.floor(width / cell)));
    const scale = devicePixelRatio;
    element.width = width * scale;
    element.height = rows * cell * scale;
    element.style.height = `${rows * cell}px`;
    const context = element.getContext("2d", { alpha: false })!;
    context.scale(scale, scale);
    context.fillStyle = token("--surface");
    context.fillRect(0, 0, width, rows * cell);
    const began = performance.now();
    draw(context, runs, width, cell, palette());
    element.dataset.ms = String(performance.now() - began);
  }, [map, look]);
  const colors: Record<keyof typeof NAMES, string> = { free: "--line", cached: "--series-4", pinned: "--series-2", shared: "--series-3", owner: "--series-1" };
  const counted: Record<string, number> = {};
  for (const [state, count] of map.runs as unknown as Run[]) counted[state] = (counted[state] ?? 0) + count;
  return (
    <div class="stack tight">
      <canvas class="blocks" ref={canvas} role="img" aria-label={`${map.total} blocks: ${Object.entries(counted).map(([state, count]) => `${count} ${state}`).join(", ")}`} data-counted={JSON.stringify(counted)} />
      <div class="legend">
        {(Object.keys(NAMES) as (keyof typeof NAMES)[]).map((name) => <span><span class="swatch" style={{ background: `var(${colors[name]})` }} />{NAMES[name]}</span>)}
      </div>
    </div>
  );
}
