// What the explorer looks like: a word that is pointed at dims the picture, and its map shines on it.

export const SPACE = 4; // px around a word, for the outline of one that has the focus

export const STYLE = `
  .stage { isolation: isolate; }
  .picture { transition: filter 0.15s; }
  .heat { opacity: 0; mix-blend-mode: screen; pointer-events: none; transition: opacity 0.15s; }
  :host([data-word]) .picture { filter: brightness(0.4); }
  :host([data-word]) .heat { opacity: 1; }
  .words {
    position: relative;
    display: flex;
    flex: none;
    flex-wrap: wrap;
    gap: ${SPACE}px;
    max-height: 40%;
    padding: ${SPACE}px;
    overflow-y: auto;
    overscroll-behavior: contain;
    scrollbar-width: thin;
  }
  button {
    max-width: 100%;
    padding: 1px 6px;
    overflow: hidden;
    border-color: transparent;
    border-radius: 6px;
    background: color-mix(in srgb, currentColor 10%, transparent);
    font: inherit;
    text-overflow: ellipsis;
    white-space: nowrap;
  }
  [data-seen] { border-color: currentColor; }
  [aria-pressed="true"] { border-color: var(--accent); box-shadow: inset 0 0 0 1px var(--accent); }
  @media (prefers-reduced-motion: reduce) { .picture, .heat { transition: none; } }
`;
