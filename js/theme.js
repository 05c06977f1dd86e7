// What all parts look like: in the colours of the host's theme, dark or light.

export const HINT_HEIGHT = 48; // px, at least

export const THEME = `
  :host {
    --ink: var(--input-text, var(--fg-color, #ddd));
    --quiet: var(--descrip-text, #999);
    --well: var(--comfy-input-bg, #222);
    --line: var(--border-color, #4e4e4e);
    --accent: var(--p-primary-color, #5b9cf5);
    box-sizing: border-box;
    contain: inline-size; /* long text does not make the node wider */
    display: flex;
    flex-direction: column;
    gap: 6px;
    width: 100%;
    height: 100%;
    min-height: ${HINT_HEIGHT}px;
    color: var(--ink);
    font-size: 12px;
    line-height: 1.4;
  }
  :host([data-shown]) .hint, :host(:not([data-shown])) > :not(.hint) { display: none; }
  .hint {
    box-sizing: border-box;
    display: grid;
    place-items: center;
    flex: 1;
    margin: 0;
    padding: 8px;
    border: 1px dashed var(--line);
    border-radius: 6px;
    color: var(--quiet);
    text-align: center;
  }
  .stage { position: relative; flex: 1 1 0; min-height: 0; }
  .stage canvas {
    position: absolute;
    inset: 0;
    width: 100%;
    height: 100%;
    object-fit: contain;
  }
  button { border: 1px solid var(--line); background: var(--well); color: inherit; cursor: pointer; }
  :is(button, input):focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 6px; }
`;
