// Where the keys lead among words that stand in lines.

import assert from "node:assert/strict";
import test from "node:test";

import { KEYS, inSight, wordAfter } from "../../js/words.js";

// a   photo   of
// the   longest  b
// end
const LINES = [
  [["a", 10], ["photo", 50], ["of", 20]],
  [["the", 30], ["longest", 70], ["b", 10]],
  [["end", 30]],
];
const [A, PHOTO, OF, THE, LONGEST, B, END] = Array(7).keys();
const boxes = LINES.flatMap((line, row) => {
  let left = 0;
  return line.map(([, width]) => {
    const box = { left, top: row * 24, width, height: 20 };
    left += width + 4;
    return box;
  });
});
const after = (key, at) => wordAfter(key, at, boxes);

test("left and right follow the reading, over the ends of lines", () => {
  assert.equal(after("ArrowRight", OF), THE);
  assert.equal(after("ArrowLeft", THE), OF);
});

test("home and end lead to the first and the last word", () => {
  assert.equal(after("Home", LONGEST), A);
  assert.equal(after("End", LONGEST), END);
});

test("down and up lead to the word that stands nearest in the next line", () => {
  assert.equal(after("ArrowDown", A), THE);
  assert.equal(after("ArrowDown", PHOTO), THE);
  assert.equal(after("ArrowDown", OF), LONGEST);
  assert.equal(after("ArrowUp", B), OF);
  assert.equal(after("ArrowUp", END), THE);
});

test("down from a word over an empty place leads to the nearest word, not to the line after", () => {
  assert.equal(after("ArrowDown", B), END);
});

test("at the edges no key leads out", () => {
  assert.equal(after("ArrowLeft", A), A);
  assert.equal(after("ArrowUp", PHOTO), PHOTO);
  assert.equal(after("ArrowRight", END), END);
  assert.equal(after("ArrowDown", END), END);
});

test("words of unequal height in one line are in one line", () => {
  const uneven = [
    { left: 0, top: 0, width: 10, height: 20 },
    { left: 14, top: 3, width: 10, height: 14 },
  ];
  assert.equal(wordAfter("ArrowDown", 0, uneven), 0);
  assert.equal(wordAfter("ArrowUp", 1, uneven), 1);
});

test("a prompt of one word has nowhere to go", () => {
  for (const key of KEYS) assert.equal(wordAfter(key, 0, boxes.slice(0, 1)), 0);
});

test("what is in sight stays where it is, and the rest comes in by the nearer edge", () => {
  assert.equal(inSight(50, 100, 60, 80), 50);
  assert.equal(inSight(50, 100, 20, 40), 20);
  assert.equal(inSight(50, 100, 200, 220), 120);
});
