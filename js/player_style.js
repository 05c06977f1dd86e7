// What the player looks like: in the colours of the host's theme, dark or light.

export const HINT_HEIGHT = 48, FILM_HEIGHT = 300; // px, at least

export const STYLE = `
  :host {
    --ink: var(--input-text, var(--fg-color, #ddd));
    --quiet: var(--descrip-text, #999);
    --well: var(--comfy-input-bg, #222);
    --line: var(--border-color, #4e4e4e);
    box-sizing: border-box;
    contain: inline-size; /* a long title does not make the node wider */
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
  :host([data-film]) { min-height: ${FILM_HEIGHT}px; }
  :host([data-film]) .hint, :host(:not([data-film])) :is(.stage, .label, .controls) { display: none; }
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
  .picture {
    position: absolute;
    inset: 0;
    width: 100%;
    height: 100%;
    object-fit: contain;
  }
  .label {
    flex: none;
    height: 1.4em;
    overflow: hidden;
    text-align: center;
    text-overflow: ellipsis;
    white-space: nowrap;
    opacity: 0.45;
    transition: opacity 0.2s;
  }
  .label[data-arrived] { opacity: 1; }
  .controls { display: flex; align-items: center; gap: 8px; }
  button {
    display: grid;
    place-items: center;
    flex: none;
    width: 26px;
    height: 26px;
    padding: 0;
    border: 1px solid var(--line);
    border-radius: 6px;
    background: var(--well);
    color: inherit;
    cursor: pointer;
  }
  button:hover { border-color: currentColor; }
  button::before { content: ""; width: 10px; height: 10px; background: currentColor; }
  [data-action="play"]::before { clip-path: polygon(10% 0, 100% 50%, 10% 100%); }
  [data-action="pause"]::before {
    clip-path: polygon(8% 0, 38% 0, 38% 100%, 62% 100%, 62% 0, 92% 0, 92% 100%, 8% 100%);
  }
  [data-action="next"]::before {
    clip-path: polygon(0 0, 72% 46%, 72% 0, 100% 0, 100% 100%, 72% 100%, 72% 54%, 0 100%);
  }
  .track { position: relative; flex: 1; min-width: 0; height: 20px; }
  .track::before {
    content: "";
    position: absolute;
    inset: 8px 0;
    border-radius: 2px;
    background: var(--line);
  }
  .marks { position: absolute; inset: 0 7px; pointer-events: none; }
  .marks i {
    position: absolute;
    top: 5px;
    width: 4px;
    height: 10px;
    margin-left: -2px;
    border-radius: 2px;
    background: var(--quiet);
  }
  input {
    position: relative;
    width: 100%;
    height: 100%;
    margin: 0;
    appearance: none;
    background: none;
    cursor: pointer;
  }
  input::-webkit-slider-thumb {
    width: 14px;
    height: 14px;
    appearance: none;
    border-radius: 50%;
    background: var(--ink);
  }
  input::-moz-range-thumb { width: 14px; height: 14px; border: 0; border-radius: 50%; background: var(--ink); }
  :is(button, input):focus-visible {
    outline: 2px solid var(--p-primary-color, #5b9cf5);
    outline-offset: 2px;
    border-radius: 6px;
  }
  :is(button, input):disabled { opacity: 0.4; cursor: default; }
  @media (prefers-reduced-motion: reduce) { .label { transition: none; } }
`;
