// The timing of films, and where frames lie on a sheet.

import assert from "node:assert/strict";
import test from "node:test";

import { FRAME, HOLD, duration, nearestStop, schedule, shotAt } from "../../js/film.js";
import { corner } from "../../js/sheet.js";

const frames = (shots) => shots.map(({ frame }) => frame);

test("a film goes through all its frames and back, and comes to each of them once on the way", () => {
  assert.deepEqual(frames(schedule(5, [0, 3, 4])), [0, 1, 2, 3, 4, 3, 2, 1]);
});

test("it rests at its readings, there and back, and nowhere else", () => {
  const shots = schedule(5, [0, 3, 4]);
  const held = shots.filter(({ from, to }) => Math.abs(to - from - HOLD) < 1e-9);
  const passed = shots.filter(({ from, to }) => Math.abs(to - from - FRAME) < 1e-9);
  assert.deepEqual(frames(held), [0, 3, 4, 3]);
  assert.deepEqual(frames(passed), [1, 2, 2, 1]);
});

test("each shot begins when the one before ends", () => {
  const shots = schedule(7, [0, 6]);
  assert.equal(shots[0].from, 0);
  shots.slice(1).forEach((shot, i) => assert.equal(shot.from, shots[i].to));
  assert.equal(duration(shots), shots[shots.length - 1].to);
});

test("a picture without another reading is a film of one frame", () => {
  assert.deepEqual(frames(schedule(1, [0])), [0]);
});

test("after the last shot comes the first", () => {
  const shots = schedule(5, [0]);
  assert.equal(shotAt(shots, 0).frame, 0);
  assert.equal(shotAt(shots, HOLD).frame, 1);
  assert.equal(shotAt(shots, duration(shots) - 1).frame, 1);
  assert.equal(shotAt(shots, duration(shots)).frame, 0);
  assert.equal(shotAt(shots, 3 * duration(shots) + HOLD).frame, 1);
});

test("halfway between two readings the later one is nearer", () => {
  assert.deepEqual([0, 1, 2, 3, 4].map((frame) => nearestStop([0, 4], frame)), [0, 0, 1, 1, 1]);
});

test("frames lie on the sheet row by row", () => {
  const sheet = { columns: 3, count: 5, width: 10, height: 20 };
  assert.deepEqual([0, 1, 2, 3, 4].map((frame) => corner(sheet, frame)), [[0, 0], [10, 0], [20, 0], [0, 20], [10, 20]]);
});
