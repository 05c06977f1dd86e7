// Of the host's /scripts/app.js only what the pack uses.

/** What a run leaves for a node's page, under the names that the node gives it. */
export type Outputs = Record<string, unknown[]>;

/** A file in one of the host's folders, as `/view` takes it. */
export type File = { filename: string; subfolder: string; type: string };

export interface Graph {
  id?: string;
  rootGraph: Graph;
  setDirtyCanvas(foreground: boolean, background: boolean): void;
}

/** Called by the host: after a run with its output, and when the node goes. */
export type Occasion = (this: GraphNode, output?: Outputs) => unknown;

export interface GraphNode {
  id: number | string;
  comfyClass: string;
  size: [number, number];
  graph: Graph | null;
  computeSize(): [number, number];
  setSize(size: [number, number]): void;
  addDOMWidget(name: string, type: string, element: HTMLElement, options: WidgetOptions): { serialize: boolean };
  onExecuted?: Occasion;
  onRemoved?: Occasion;
}

export interface WidgetOptions {
  serialize: boolean;
  hideOnZoom: boolean;
  getMinHeight(): number;
}

export const app: {
  canvas: { canvas: HTMLCanvasElement };
  nodeOutputs?: Record<string, Outputs>;
  registerExtension(extension: { name: string; nodeCreated(node: GraphNode): void }): void;
};
