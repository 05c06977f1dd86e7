// What the player looks like.

export const STYLE = `
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
    border-radius: 6px;
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
  :is(button, input):disabled { opacity: 0.4; cursor: default; }
  @media (prefers-reduced-motion: reduce) { .label { transition: none; } }
`;
