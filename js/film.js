// The timing of a film that moves between readings, and where its frames lie on their sheet. No page needed.

export const FRAME = 1000 / 24; // ms that a frame is shown
export const HOLD = 800; // ms that a reading is shown

/** Return [{frame, from, to}] in ms: through all `count` frames and back again, at rest at each of `stops`. */
export function schedule(count, stops) {
  const there = Array.from({ length: count }, (_, frame) => frame);
  const shots = [];
  let from = 0;
  for (const frame of [...there, ...there.slice(1, -1).reverse()]) {
    const to = from + (stops.includes(frame) ? HOLD : FRAME);
    shots.push({ frame, from, to });
    from = to;
  }
  return shots;
}

/** Return the shot of `shots` that is on at `time` ms; after the last one comes the first. */
export function shotAt(shots, time) {
  const moment = time % shots.at(-1).to;
  return shots.find((shot) => moment < shot.to) ?? shots[0];
}

/** Return the index of the stop that `frame` is nearest to; halfway it is the later one. */
export function nearestStop(stops, frame) {
  const away = (stop) => Math.abs(stop - frame);
  return stops.reduce((best, stop, i) => (away(stop) <= away(stops[best]) ? i : best), 0);
}

/** Return the left upper corner [x, y] of a frame on the sheet of `film`, in px. */
export function corner({ columns, width, height }, frame) {
  return [(frame % columns) * width, Math.floor(frame / columns) * height];
}
