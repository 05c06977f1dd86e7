// Of the host's /scripts/api.js only what the pack uses.

export const api: { apiURL(route: string): string };
