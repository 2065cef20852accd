/** A chart over time: at most four series, labelled directly, in the colours of the theme. */
import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { theme } from "../theme";
import { useZone } from "../time";

export interface Series {
  label: string;
  values: (number | null)[];
  /** Drawn as bars instead of a line. */
  bars?: boolean;
}

interface Props {
  /** Seconds since 1970. */
  times: number[];
  series: Series[];
  format: (value: number | null) => string;
  label: string;
  height?: number;
}

const FEW = 24;

export function token(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function options({ times, series, format, height = 180 }: Props, width: number, zone: string): uPlot.Options {
  const axis: uPlot.Axis = {
    stroke: token("--muted"),
    grid: { stroke: token("--line"), width: 1 },
    ticks: { stroke: token("--line"), width: 1 },
    font: "12px Inter Variable, system-ui, sans-serif",
  };
  // Bars stand in the middle of their time: the first and the last need room beside them.
  const bar = series.some((one) => one.bars) ? (times[1] ?? 0) - (times[0] ?? 0) : 0;
  const bars = uPlot.paths.bars!({ size: [0.7, 40] });
  return {
    width,
    height,
    tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), zone),
    cursor: { y: false, points: { size: 6 } },
    axes: [
      { ...axis, values: [[86400, "{DD}/{MM}", null, null, null, null, null, null, 1], [3600, "{HH}:00", "\n{DD}/{MM}", null, "\n{DD}/{MM}", null, null, null, 1], [60, "{HH}:{mm}", "\n{DD}/{MM}", null, "\n{DD}/{MM}", null, null, null, 1], [1, "{HH}:{mm}:{ss}", null, null, null, null, null, null, 1]] },
      { ...axis, size: 72, values: (_, splits) => splits.map((value) => format(value)) },
    ],
    scales: { x: { range: (_, low, high) => (bar ? [low - bar / 2, high + bar / 2] : [low, high]) }, y: { range: (_, low, high) => [Math.min(0, low ?? 0), (high ?? 0) > 0 ? high * 1.08 : 1] } },
    series: [
      {},
      ...series.map(({ label, bars: asBars }, number) => ({
        label,
        stroke: token(`--series-${number + 1}`),
        width: asBars ? 0 : 1.5,
        spanGaps: false,
        // A line through few points, or beside gaps, would not be seen without them.
        points: { show: (plot: uPlot, index: number) => !asBars && [...plot.data[index]!].filter((value) => value != null).length <= FEW, size: 5, fill: token(`--series-${number + 1}`) },
        ...(asBars ? { fill: token(`--series-${number + 1}`), paths: bars } : {}),
      })),
    ],
  };
}

export function Chart(props: Props) {
  const holder = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | undefined>(undefined);
  const look = theme.use();
  const zone = useZone();
  const data = [props.times, ...props.series.map(({ values }) => values)] as uPlot.AlignedData;
  const shape = props.series.map(({ label }) => label).join("|");
  useEffect(() => {
    const element = holder.current!;
    plot.current = new uPlot(options(props, element.clientWidth, zone), data, element);
    const observer = new ResizeObserver(() => plot.current?.setSize({ width: element.clientWidth, height: props.height ?? 180 }));
    observer.observe(element);
    return () => {
      observer.disconnect();
      plot.current?.destroy();
    };
  }, [look, zone, shape]);
  useEffect(() => plot.current?.setData(data), [props.times, props.series]);
  const latest = ({ values }: Series) => props.format(values.findLast((value) => value !== null) ?? null);
  return (
    <figure style={{ margin: 0 }}>
      <div class="chart" ref={holder} role="img" aria-label={`${props.label}: ${props.series.map((one) => `${one.label} ${latest(one)}`).join(", ")}`} />
      <figcaption class="legend">
        {props.series.map((one, number) => (
          <span><span class="swatch" style={{ background: `var(--series-${number + 1})` }} />{one.label}<span class="muted"> {latest(one)}</span></span>
        ))}
      </figcaption>
    </figure>
  );
}
