// A sheet: many frames of one size in one picture, as nodes/host/sheets.py saves it.

/** @typedef {{ columns: number, count: number, width: number, height: number }} Sheet */

/**
 * Return the left upper corner [x, y] of a frame, in px of the picture.
 * @param {Sheet} sheet
 * @param {number} frame
 * @returns {[number, number]}
 */
export function corner({ columns, width, height }, frame) {
  return [(frame % columns) * width, Math.floor(frame / columns) * height];
}

/**
 * Draw a frame over all of `canvas`.
 * @param {HTMLCanvasElement} canvas
 * @param {CanvasImageSource} picture that of the sheet
 * @param {Sheet} sheet
 * @param {number} frame
 */
export function drawFrame(canvas, picture, sheet, frame) {
  const context = canvas.getContext("2d");
  if (!context) return; // the browser has no memory for it
  context.imageSmoothingQuality = "high";
  const place = /** @type {const} */ ([0, 0, canvas.width, canvas.height]);
  context.drawImage(picture, ...corner(sheet, frame), sheet.width, sheet.height, ...place);
}
