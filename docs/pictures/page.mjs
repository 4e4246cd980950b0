// Pictures of ComfyUI's page in a browser. Arguments: address of the host, path of chromium, a JSON
// file with a list of shots. A shot is
//   out    PNG file to write
//   graph  a workflow as the page saves it, or
//   nodes  types of nodes with their places, and `links` between them (node, output, node, input)
//   run    whether to queue it first
//   width  of the picture in pixels; text is drawn at that size.

import { readFileSync } from 'node:fs';

import { load, newPage, open, pictures, run, set } from '../../tests/nodes/comfy_page.mjs';

const [url, executablePath, list] = process.argv.slice(2);
const MARGIN = 16;
const TOP = 110; // below the page's bars
const LEFT = 70; // right of its tabs
const TITLE = 50; // title of a node, and the name of its pack above

const page = await newPage(executablePath, 1800, 1500);
page.setDefaultTimeout(300_000);
await open(page, url);
await page.keyboard.press('Escape');
await set(page, {
  'Comfy.Minimap.Visible': false,
  'Comfy.Graph.CanvasMenu': false,
  'LiteGraph.Canvas.MinFontSizeForLOD': 0, // text at any scale
});
await page.evaluate(() => (window.app.canvas.show_info = false));

for (const shot of JSON.parse(readFileSync(list))) {
  if (shot.graph) await load(page, shot.graph);
  else await place(shot);
  await page.waitForTimeout(1000);
  if (shot.run) {
    await run(page);
    await pictures(page);
  }
  const clip = await fit(shot.width);
  await page.waitForTimeout(1000);
  await page.screenshot({ path: shot.out, clip });
}
await page.context().browser().close();

// New nodes with links between them, and nothing else.
async function place(shot) {
  await page.evaluate(({ nodes, links }) => {
    window.app.graph.clear();
    const made = nodes.map(({ type, pos }) => {
      const node = window.LiteGraph.createNode(type);
      node.pos = pos;
      window.app.graph.add(node);
      return node;
    });
    for (const [source, output, target, input] of links) {
      made[source].connect(output, made[target], input);
    }
  }, shot);
}

// Bring all nodes and groups into view, and say where they are on the page.
async function fit(width) {
  const bounds = await page.evaluate((title) => {
    const boxOf = ({ pos: [x, y], size }, above) => [x, y - above, size[0], size[1] + above];
    const boxes = [
      ...window.app.graph.nodes.map((node) => boxOf(node, title)),
      ...window.app.graph.groups.map((group) => boxOf(group, 0)),
    ];
    const left = Math.min(...boxes.map(([x]) => x));
    const top = Math.min(...boxes.map(([, y]) => y));
    const right = Math.max(...boxes.map(([x, , w]) => x + w));
    const bottom = Math.max(...boxes.map(([, y, , h]) => y + h));
    return [left, top, right - left, bottom - top];
  }, TITLE);
  const scale = (width - 2 * MARGIN) / bounds[2];
  await page.evaluate(
    ([x, y, scale]) => {
      window.app.canvas.deselectAllNodes?.();
      const { ds } = window.app.canvas;
      ds.scale = scale;
      ds.offset = [x, y];
      window.app.canvas.setDirty(true, true);
    },
    [(LEFT + MARGIN) / scale - bounds[0], (TOP + MARGIN) / scale - bounds[1], scale],
  );
  return { x: LEFT, y: TOP, width, height: Math.round(bounds[3] * scale) + 2 * MARGIN };
}
