// Where keys lead among words that stand in lines, like text, and what is in sight of them. No page needed.

export const KEYS = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"];

/** @typedef {{ left: number, top: number, width: number, height: number }} Box */

/**
 * Return the index of the word that `key` leads to from word `at` of those at `boxes`; `at` if there is none.
 * @param {string} key one of KEYS
 * @param {number} at
 * @param {readonly Box[]} boxes in the order of reading
 */
export function wordAfter(key, at, boxes) {
  const last = boxes.length - 1;
  switch (key) {
    case "ArrowLeft":
      return Math.max(0, at - 1);
    case "ArrowRight":
      return Math.min(last, at + 1);
    case "ArrowUp":
      return lineAway(-1, at, boxes);
    case "ArrowDown":
      return lineAway(1, at, boxes);
    case "Home":
      return 0;
    default:
      return last;
  }
}

/**
 * Return how far lines have to be scrolled, as little as can be, to bring what lies from `top` to `bottom` into sight.
 * @param {number} scrolled so far
 * @param {number} room
 * @param {number} top
 * @param {number} bottom
 */
export function inSight(scrolled, room, top, bottom) {
  return Math.min(top, Math.max(scrolled, bottom - room));
}

/**
 * Return the word of the next line (`way` 1) or the one before (-1) that stands nearest to word `at`.
 * @param {number} way
 * @param {number} at
 * @param {readonly Box[]} boxes
 */
function lineAway(way, at, boxes) {
  const half = boxes[at].height / 2;
  const from = middle(boxes[at]);
  const off = boxes.map(middle).map(({ x, y }, word) => ({ word, x: Math.abs(x - from.x), y: way * (y - from.y) }));
  const beyond = off.filter(({ y }) => y > half);
  const line = Math.min(...beyond.map(({ y }) => y)) + half;
  const nearest = beyond.filter(({ y }) => y < line).sort((one, other) => one.x - other.x)[0];
  return nearest ? nearest.word : at;
}

/** @param {Box} box */
function middle({ left, top, width, height }) {
  return { x: left + width / 2, y: top + height / 2 };
}
