// The timing of a film that moves between readings. No page needed.

export const FRAME = 1000 / 24; // ms that a frame is shown
export const HOLD = 800; // ms that a reading is shown

/** @typedef {{ frame: number, from: number, to: number }} Shot in ms since the start */

/**
 * Return the shots of a film: through all `count` frames and back again, at rest at each of `stops`.
 * @param {number} count
 * @param {readonly number[]} stops
 * @returns {Shot[]}
 */
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

/**
 * Return how long all `shots` take, in ms.
 * @param {readonly Shot[]} shots
 */
export function duration(shots) {
  return shots[shots.length - 1].to;
}

/**
 * Return the shot that is on at `time` ms; after the last one comes the first.
 * @param {readonly Shot[]} shots
 * @param {number} time
 */
export function shotAt(shots, time) {
  const moment = time % duration(shots);
  return shots.find((shot) => moment < shot.to) ?? shots[0];
}

/**
 * Return the index of the stop that `frame` is nearest to; halfway it is the later one.
 * @param {readonly number[]} stops
 * @param {number} frame
 */
export function nearestStop(stops, frame) {
  const away = (/** @type {number} */ stop) => Math.abs(stop - frame);
  return stops.reduce((best, stop, i) => (away(stop) <= away(stops[best]) ? i : best), 0);
}
